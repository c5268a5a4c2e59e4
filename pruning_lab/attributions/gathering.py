"""The evidence of players at the places where their units are read."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from pruning_lab.attributions.base import Site, by_unit
from pruning_lab.attributions.formulas import ask
from pruning_lab.attributions.players import alike

Evidence = dict[Any, tuple[torch.Tensor, torch.Tensor]]
"""At every node the activation and the gradient of each sample's own loss."""


class Gathering:
    """The sites of ``count`` players, and what is made out of the evidence there.

    Where the one site has no row every unit is a player.
    """

    def __init__(self, sites: Sequence[Site], count: int | None) -> None:
        rows = [site.row for site in sites if site.row is not None]
        self.sites, self._count = sites, count if rows else None
        self._alike = [] if self._count is None else alike(rows, self._count)

    @property
    def nodes(self) -> list[Any]:
        """What must be recorded."""
        return [site.node for site in self.sites]

    @property
    def graded(self) -> list[Any]:
        """Of these the nodes where the gradient is read."""
        return [site.node for site in self.sites]

    def side_by_side(
        self, evidence: Evidence, formula: Callable[..., torch.Tensor], more: tuple[int, ...] = ()
    ) -> torch.Tensor:
        """Scores (samples, players), all units of a player as one with the positions of all.

        ``formula`` may give ``more`` dimensions.
        """

        def asked(*given: torch.Tensor) -> torch.Tensor:
            return ask(formula, (*given[0].shape[:2], *more), "(samples, units)", *given)

        pairs = [
            tuple(by_unit(each, site.axis, site.module) for each in evidence[site.node])
            for site in self.sites
        ]
        if self._count is None:
            return asked(*pairs[0])
        parts = [
            asked(*(_side_by_side(each, players.units) for each in zip(*pairs, strict=True)))
            for players in self._alike
        ]
        numbers = torch.cat([players.players for players in self._alike])
        return torch.cat(parts, 1)[:, numbers.argsort().to(parts[0].device)]

    def summed(self, scores: Sequence[torch.Tensor]) -> torch.Tensor:
        """Scores (samples, players): sums of their units' ones, (samples, units) at each site."""
        if self._count is None:
            return scores[0]
        return sum_of_members(scores, [site.row for site in self.sites], self._count)


def sum_of_members(
    scores: Sequence[torch.Tensor], rows: Sequence[torch.Tensor | None], count: int
) -> torch.Tensor:
    """(..., players): the sums of scores (..., units) over the units of each of ``count`` players.

    ``rows`` has the number of each unit's player, -1 for none.
    """
    total = scores[0].new_zeros(*scores[0].shape[:-1], count + 1)  # the last is NOBODY's
    for own, row in zip(scores, rows, strict=True):
        if row is not None:
            total.index_add_(-1, (row % (count + 1)).to(own.device), own.to(total))
    return total[..., :-1]


def _side_by_side(values: Sequence[torch.Tensor], units: Sequence[torch.Tensor]) -> torch.Tensor:
    """Values (N, units, positions) at several places as (N, players, all their positions)."""
    own = [
        each[:, which.to(each.device)].flatten(2) for each, which in zip(values, units, strict=True)
    ]
    return torch.cat(own, 2)
