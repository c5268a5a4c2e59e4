"""Unit groups: units, of one layer or of several, that are scored and removed at once."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from pruning_lab.coupling.structure import CoupledLayers


@dataclass(frozen=True)
class UnitGroups:
    """The modules whose units are scored, each with its units' group numbers, (units,).

    None instead of the numbers: every unit is a group of its own. -1: it cannot be removed.
    """

    members: Mapping[nn.Module, torch.Tensor | None]

    @property
    def first(self) -> nn.Module:
        """The module that identifies the groups."""
        return next(iter(self.members))

    @property
    def count(self) -> int | None:
        """Number of groups; None if every unit is one."""
        return count_of(self.members.values())


def count_of(rows: Iterable[torch.Tensor | None]) -> int | None:
    """Return the number of groups that ``rows`` number; None if every unit is one."""
    last = [int(row.max()) for row in rows if row is not None]
    return max(last) + 1 if last else None


def units_of_module(module: nn.Module) -> UnitGroups:
    """Return the unit groups of one module: every unit is a group."""
    return UnitGroups({module: None})


def unit_groups_of(model: nn.Module, group: CoupledLayers) -> UnitGroups:
    """Return the unit groups of coupled layers: units that are removed together."""
    return UnitGroups({model.get_submodule(name): row for name, row in group.unit_groups.items()})


def keep_rows(keep: torch.Tensor, row: torch.Tensor | None) -> torch.Tensor:
    """Return the units of one layer that a mask of groups (rows, groups) keeps: (rows, units)."""
    if row is None:
        return keep
    always = torch.ones(len(keep), 1, dtype=keep.dtype, device=keep.device)  # the last is -1's
    return torch.cat([keep, always], 1)[:, row.to(keep.device)]


class Alike(NamedTuple):
    """Numbers (groups,) of groups with equal unit counts, and units (groups, units) per site."""

    unit_groups: torch.Tensor
    units: list[torch.Tensor]


def alike(rows: Sequence[torch.Tensor], count: int) -> list[Alike]:
    """Split ``count`` groups into sets of equal unit counts; ``rows``: group numbers per site."""
    sizes = [torch.bincount(row[row >= 0], minlength=count).tolist() for row in rows]
    units = [
        row.argsort(stable=True)[(row < 0).sum() :].split(of_groups)
        for row, of_groups in zip(rows, sizes, strict=True)
    ]
    sets: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, in_group in enumerate(zip(*sizes, strict=True)):
        sets[in_group].append(number)
    return [
        Alike(torch.tensor(numbers), [torch.stack([of[n] for n in numbers]) for of in units])
        for _, numbers in sorted(sets.items())
    ]
