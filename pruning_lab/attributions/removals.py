"""What sets of units cost when they go: the ground truth that a ranking is held against."""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import ClassVar

import numpy as np
import torch

from pruning_lab.attributions.game import Game
from pruning_lab.attributions.masks import MaskMetric, OneRoundMetric
from pruning_lab.errors import UserError

LARGEST = 100_000
"""Sets of a layer's units that are tried at most."""

CHUNK = 1024
"""Sets that are asked at a time."""


class RemovalMetric(OneRoundMetric):
    """By what the loss rises when sets of a layer's units go: L(all but S) - L(all).

    ``removed`` is (sets, units), True where a unit is gone, as ``sets_of`` and ``first_of`` make
    it; ``run`` gives one number a set, (sets,), or (samples, sets) with ``reduction="none"``.
    Raises UserError where it has another number of units.
    """

    options: ClassVar[tuple[str, ...]] = (*MaskMetric.options, "removed")

    removed: np.ndarray | None = None

    def _check_options(self) -> None:
        super()._check_options()
        if self.removed is not None:
            self._sets()

    def _sets(self) -> np.ndarray:
        given = self.removed
        fits = isinstance(given, np.ndarray) and given.ndim == 2 and given.dtype == bool
        if not fits or given is None or len(given) == 0:
            raise UserError("removed must be an array of booleans, (sets, units), of one at least.")
        return given

    def _numbers(self, players: int) -> int:
        return len(self._sets())

    def _rows(self, players: int) -> tuple[int, int]:
        return 2 + len(self._sets()), 0  # all players, and none

    def _at_most(self, players: int) -> int | None:
        sets, units = self._sets().shape
        if units != players:
            raise UserError(f"removed is about {units} units; the layer has {players}.")
        return max(1, self.memory // (8 * sets))

    @torch.no_grad()
    def _score(self, game: Game, first: int) -> tuple[torch.Tensor, torch.Tensor]:
        keep = torch.as_tensor(~self._sets(), device=self.device)
        rises = torch.cat([self._rises(game, some) for some in keep.split(CHUNK)]).T
        return rises, torch.zeros_like(rises)

    def _rises(self, game: Game, keep: torch.Tensor) -> torch.Tensor:
        """(sets, samples), in float64."""
        every = keep.unsqueeze(1).expand(-1, game.samples, -1)
        return game.losses(every).double() - game.ends[0].double()


def sets_of(units: int, size: int) -> np.ndarray:
    """All sets of ``size`` units, as (sets, units), in lexicographic order.

    Raises UserError for none, or more than 100,000 of them.
    """
    count = math.comb(units, size)
    if not 0 < count <= LARGEST:
        raise UserError(
            f"{units} units have {count} sets of size={size}; from 1 to {LARGEST} can be tried. "
            "Choose another size, or a smaller layer."
        )
    numbers = np.array(list(combinations(range(units), size)), dtype=int).reshape(count, size)
    removed = np.zeros((count, units), dtype=bool)
    np.put_along_axis(removed, numbers, True, 1)
    return removed


def first_of(order: np.ndarray, counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """The first ``counts`` units of an order of removal, as (counts, units)."""
    turn = np.empty(len(order), dtype=int)
    turn[order] = np.arange(len(order))
    return turn < np.asarray(counts)[:, None]


def oracle_rank(scores: np.ndarray, size: int, rises: np.ndarray) -> np.ndarray:
    """The share of all other sets of this size that do less harm than the criterion's.

    The criterion removes the ``size`` lowest of its ``scores`` (units,), as a plan does; ``rises``
    (..., sets) are those of ``sets_of(units, size)``, the result is (...). 0 is the best set there
    is, 0.5 what chance gives: sets that do the same harm count half.
    """
    removed = first_of(np.argsort(scores, kind="stable"), [size])[0]
    own = rises[..., [(sets_of(len(scores), size) == removed).all(1).argmax()]]
    less, same = (rises < own).sum(-1), (rises == own).sum(-1) - 1
    return (less + same / 2) / max(1, rises.shape[-1] - 1)
