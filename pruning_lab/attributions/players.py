"""What is scored: units, or units of several layers that only go together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from pruning_lab.graph import Group

NOBODY = -1
"""The player of a unit that cannot go."""


@dataclass(frozen=True)
class Players:
    """The modules whose units are scored, and for each unit the number of its player.

    None: every unit is a player of its own.
    """

    members: Mapping[nn.Module, torch.Tensor | None]

    @property
    def first(self) -> nn.Module:
        """The module that the players are known by."""
        return next(iter(self.members))

    @property
    def count(self) -> int | None:
        """How many players there are; None where every unit is one."""
        rows = [row for row in self.members.values() if row is not None]
        return int(max(row.max() for row in rows)) + 1 if rows else None

    @property
    def joint(self) -> bool:
        """Whether a player may have several units."""
        return any(row is not None for row in self.members.values())


def units_of_module(module: nn.Module) -> Players:
    """Every unit of ``module`` is a player."""
    return Players({module: None})


def players_of_group(model: nn.Module, group: Group) -> Players:
    """The players of a group of layers: all their units go together."""
    return Players({model.get_submodule(name): row for name, row in group.players.items()})


def every_unit(row: torch.Tensor | None) -> bool:
    """Whether every unit of a layer is a player of its own, in their order."""
    return row is None or torch.equal(row.cpu(), torch.arange(len(row)))


def keep_rows(keep: torch.Tensor, row: torch.Tensor | None) -> torch.Tensor:
    """Which units a mask of players (rows, players) keeps in one layer: (rows, units)."""
    if row is None:
        return keep
    always = torch.ones(len(keep), 1, dtype=keep.dtype, device=keep.device)  # at NOBODY, the last
    return torch.cat([keep, always], 1)[:, row.to(keep.device)]


@dataclass(frozen=True)
class Alike:
    """Players that have the same number of units in every place: (players, units) for each."""

    players: torch.Tensor
    units: list[torch.Tensor]


def alike(rows: Sequence[torch.Tensor], count: int) -> list[Alike]:
    """The players in sets that are alike; ``rows`` has one row of players for each place."""
    has = torch.stack([torch.bincount(row[row >= 0], minlength=count) for row in rows], 1)
    kinds, kind = has.unique(dim=0, return_inverse=True)
    orders = [row.argsort(stable=True)[(row < 0).sum() :] for row in rows]  # by player
    firsts = has.cumsum(0) - has  # where each player's units begin
    found = []
    for number, counts in enumerate(kinds.tolist()):
        players = (kind == number).nonzero().flatten()
        units = [
            order[firsts[players, place, None] + torch.arange(many)]
            for place, (order, many) in enumerate(zip(orders, counts, strict=True))
        ]
        found.append(Alike(players, units))
    return found
