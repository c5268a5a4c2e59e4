"""Collect the evidence of unit groups from the sites where their units are read."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from pruning_lab.attributions.base import Site, by_unit
from pruning_lab.attributions.evidence.formulas import ask
from pruning_lab.attributions.unit_groups import alike

Evidence = dict[Any, tuple[torch.Tensor, torch.Tensor]]
"""Node -> the activation, and the gradient of each sample's own loss there."""


class Gathering:
    """The sites of ``count`` unit groups; computes scores from the evidence there.

    If the only site has no row, every unit is a group.
    """

    def __init__(self, sites: Sequence[Site], count: int | None) -> None:
        rows = [site.row for site in sites if site.row is not None]
        self.sites, self._count = sites, count if rows else None
        self._alike = [] if self._count is None else alike(rows, self._count)

    @property
    def nodes(self) -> list[Any]:
        """The nodes that must be recorded."""
        return [site.node for site in self.sites]

    @property
    def graded(self) -> list[Any]:
        """Those of them at which the gradient is read."""
        return [site.node for site in self.sites]

    def side_by_side(
        self, evidence: Evidence, formula: Callable[..., torch.Tensor], more: tuple[int, ...] = ()
    ) -> torch.Tensor:
        """Return scores (samples, groups); a group is passed as one unit with all its positions.

        ``more``: further dimensions of the formula's result.
        """

        def asked(*given: torch.Tensor) -> torch.Tensor:
            return ask(formula, (*given[0].shape[:2], *more), "(samples, units)", *given)

        pairs = [
            tuple(by_unit(values, site.axis, site.module) for values in evidence[site.node])
            for site in self.sites
        ]
        if self._count is None:
            return asked(*pairs[0])
        parts = [
            asked(*(_side_by_side(v, unit_groups.units) for v in zip(*pairs, strict=True)))
            for unit_groups in self._alike
        ]
        numbers = torch.cat([unit_groups.unit_groups for unit_groups in self._alike])
        return torch.cat(parts, 1)[:, numbers.argsort().to(parts[0].device)]

    def summed(self, scores: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return scores (samples, groups): sums over units of (samples, units), given per site."""
        if self._count is None:
            return scores[0]
        return sum_of_members(scores, [site.row for site in self.sites], self._count)


def sum_of_members(
    scores: Sequence[torch.Tensor], rows: Sequence[torch.Tensor | None], count: int
) -> torch.Tensor:
    """Sum scores (..., units) over the units of each of ``count`` groups: (..., groups).

    ``rows`` has each unit's group number, -1 for none.
    """
    total = scores[0].new_zeros(*scores[0].shape[:-1], count + 1)  # the last column is NOBODY's
    for values, row in zip(scores, rows, strict=True):
        if row is not None:
            total.index_add_(-1, (row % (count + 1)).to(values.device), values.to(total))
    return total[..., :-1]


def _side_by_side(values: Sequence[torch.Tensor], units: Sequence[torch.Tensor]) -> torch.Tensor:
    """Join values (N, units, positions) at several sites to (N, groups, all their positions)."""
    parts = [v[:, index.to(v.device)].flatten(2) for v, index in zip(values, units, strict=True)]
    return torch.cat(parts, 2)
