"""Gather the evidence of unit groups from the sites of their units, and ask formulas for scores."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from pruning_lab.attributions.base import Site
from pruning_lab.attributions.unit_groups import alike
from pruning_lab.errors import UserError

Evidence = dict[Any, tuple[torch.Tensor, torch.Tensor]]
"""Node -> the activation, and the gradient of each sample's own loss there."""


class Gathering:
    """The sites of ``count`` unit groups; computes scores from the evidence there.

    If the only site has no row, every unit is a group. ``inputs``, if any: the node of the input of
    each site's module, which is recorded, too, and the share of a pass that the module takes.
    """

    def __init__(
        self, sites: Sequence[Site], count: int | None, inputs: Sequence[tuple[Any, float]] = ()
    ) -> None:
        rows = [site.row for site in sites if site.row is not None]
        self.sites, self.inputs, self._count = sites, inputs, count if rows else None
        self._alike = [] if self._count is None else alike(rows, self._count)

    def side_by_side(
        self, evidence: Evidence, formula: Callable[..., torch.Tensor], more: tuple[int, ...] = ()
    ) -> torch.Tensor:
        """Return scores (samples, groups); a group is passed as one unit with all its positions.

        ``more``: further dimensions of the formula's result.
        """

        def asked(*given: torch.Tensor) -> torch.Tensor:
            return ask(formula, (*given[0].shape[:2], *more), "(samples, units)", *given)

        pairs = [tuple(map(site.by_unit, evidence[site.node])) for site in self.sites]
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
        return sum_of_members(scores, [site.row for site in self.sites], self._count)


def sum_of_members(
    scores: Sequence[torch.Tensor], rows: Iterable[torch.Tensor | None], count: int | None
) -> torch.Tensor:
    """Sum scores (..., units) over the units of each of ``count`` groups: (..., groups).

    ``rows`` has each unit's group number, -1 for none. Without ``count`` every unit is a group.
    """
    if count is None:
        return scores[0]
    total = scores[0].new_zeros(*scores[0].shape[:-1], count + 1)  # the last column is for none
    for values, row in zip(scores, rows, strict=True):
        if row is not None:
            total.index_add_(-1, (row % (count + 1)).to(values.device), values.to(total))
    return total[..., :-1]


def _side_by_side(values: Sequence[torch.Tensor], units: Sequence[torch.Tensor]) -> torch.Tensor:
    """Join values (N, units, positions) at several sites to (N, groups, all their positions)."""
    parts = [v[:, index.to(v.device)].flatten(2) for v, index in zip(values, units, strict=True)]
    return torch.cat(parts, 2)


def ask(
    formula: Callable[..., Any], shape: Sequence[int], words: str, *given: torch.Tensor
) -> torch.Tensor:
    """Call ``formula`` on copies of ``given``; UserError unless the result has this ``shape``.

    Copies, because ``given`` serves other criteria, too, or belongs to the model.
    """
    return fitting(formula(*(tensor.clone() for tensor in given)), shape, words, formula)


def fitting(
    found: Any, shape: Sequence[int], words: str, formula: Callable[..., Any]
) -> torch.Tensor:
    """Return scores as floats; UserError unless they are a tensor of real numbers of this shape."""
    tensor = isinstance(found, torch.Tensor)
    if not tensor or found.is_complex() or found.shape != torch.Size(shape):
        name = getattr(formula, "__qualname__", repr(formula))
        if owner := getattr(formula, "__self__", None):
            name = f"{type(owner).__name__}.{formula.__name__}"
        kind = f"tensor {tuple(found.shape)} of {found.dtype}" if tensor else type(found).__name__
        raise UserError(
            f"{name} must return a tensor of real numbers {words}, here {tuple(shape)}; it "
            f"returned a {kind}."
        )
    found = found.detach().clone()  # a formula may later write to its result
    return found if found.is_floating_point() else found.double()
