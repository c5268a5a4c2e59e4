"""Unit groups: units, of one layer or of several, that are scored and removed at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from pruning_lab.coupling.structure import CoupledLayers

NOBODY = -1
"""Group number of a unit that cannot be removed."""


@dataclass(frozen=True)
class UnitGroups:
    """The modules whose units are scored, each with its units' group numbers, (units,).

    None instead of the numbers: every unit is a group of its own.
    """

    members: Mapping[nn.Module, torch.Tensor | None]

    @property
    def first(self) -> nn.Module:
        """The module that identifies the groups."""
        return next(iter(self.members))

    @property
    def count(self) -> int | None:
        """Number of groups; None if every unit is one."""
        rows = [row for row in self.members.values() if row is not None]
        return int(max(row.max() for row in rows)) + 1 if rows else None

    @property
    def joint(self) -> bool:
        """True if a group may have several units."""
        return any(row is not None for row in self.members.values())


def units_of_module(module: nn.Module) -> UnitGroups:
    """Return the unit groups of one module: every unit is a group."""
    return UnitGroups({module: None})


def unit_groups_of(model: nn.Module, group: CoupledLayers) -> UnitGroups:
    """Return the unit groups of coupled layers: units that are removed together."""
    return UnitGroups({model.get_submodule(name): row for name, row in group.unit_groups.items()})


def every_unit(row: torch.Tensor | None) -> bool:
    """Return True if every unit of a layer is a group of its own, numbered in their order."""
    return row is None or torch.equal(row.cpu(), torch.arange(len(row)))


def keep_rows(keep: torch.Tensor, row: torch.Tensor | None) -> torch.Tensor:
    """Return the units of one layer that a mask of groups (rows, groups) keeps: (rows, units)."""
    if row is None:
        return keep
    always = torch.ones(len(keep), 1, dtype=keep.dtype, device=keep.device)  # NOBODY: last column
    return torch.cat([keep, always], 1)[:, row.to(keep.device)]


@dataclass(frozen=True)
class Alike:
    """Numbers (groups,) of groups with equal unit counts, and units (groups, units) per site."""

    unit_groups: torch.Tensor
    units: list[torch.Tensor]


def alike(rows: Sequence[torch.Tensor], count: int) -> list[Alike]:
    """Split ``count`` groups into sets of equal unit counts; ``rows``: group numbers per site."""
    sizes = torch.stack([torch.bincount(row[row >= 0], minlength=count) for row in rows], 1)
    kinds, kind = sizes.unique(dim=0, return_inverse=True)
    orders = [row.argsort(stable=True)[(row < 0).sum() :] for row in rows]  # units by group
    firsts = sizes.cumsum(0) - sizes  # where each group's units begin
    sets = []
    for number, counts in enumerate(kinds.tolist()):
        unit_groups = (kind == number).nonzero().flatten()
        units = [
            order[firsts[unit_groups, place, None] + torch.arange(size)]
            for place, (order, size) in enumerate(zip(orders, counts, strict=True))
        ]
        sets.append(Alike(unit_groups, units))
    return sets
