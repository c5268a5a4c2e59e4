"""Losses after sets of units are removed: the ground truth that a ranking is compared with."""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import ClassVar

import numpy as np
import torch

from pruning_lab.attributions.evidence.game import Game
from pruning_lab.attributions.evidence.masks import MaskMetric, OneRoundMetric
from pruning_lab.errors import UserError

LARGEST = 100_000
"""Maximum number of sets of a layer's units that can be tried."""

CHUNK = 1024
"""Number of sets that are evaluated at a time."""


class RemovalMetric(OneRoundMetric):
    """Rise of the loss when sets of a layer's units are removed: L(all but S) - L(all).

    ``removed`` is (sets, units), True where a unit is removed, as ``sets_of`` and ``first_of`` make
    it; ``run`` returns one number per set, (sets,), or (samples, sets) with ``reduction="none"``.
    Raises UserError if the layer has another number of units.
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
            raise UserError("removed must be an array of booleans (sets, units), one set or more.")
        return given

    def _numbers(self, players: int) -> int:
        return len(self._sets())

    def _rows(self, players: int) -> tuple[int, int]:
        return 2 + len(self._sets()), 0  # all players, and none

    def _at_most(self, unit_groups: int) -> int | None:
        sets, units = self._sets().shape
        if units != unit_groups:
            raise UserError(f"removed has {units} units; the layer has {unit_groups}.")
        return max(1, self.memory // (8 * sets))

    @torch.no_grad()
    def _score(self, game: Game, first: int) -> tuple[torch.Tensor, torch.Tensor]:
        keep = torch.as_tensor(~self._sets(), device=self.device)
        masks = keep.unsqueeze(1).expand(-1, game.samples, -1)
        losses = torch.cat([game.losses(chunk) for chunk in masks.split(CHUNK)])
        rises = (losses.double() - game.ends[0].double()).T
        return rises, torch.zeros_like(rises)


def sets_of(units: int, size: int) -> np.ndarray:
    """Return all sets of ``size`` units as masks (sets, units), in lexicographic order.

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
    """Return the first ``counts`` units of an order of removal as masks (counts, units)."""
    return np.argsort(order) < np.asarray(counts)[:, None]  # the turn of each unit


def oracle_rank(scores: np.ndarray, size: int, rises: np.ndarray) -> np.ndarray:
    """Return the share of all other sets of this size that do less harm than the criterion's.

    The criterion removes the ``size`` lowest of its ``scores`` (units,), as a plan does; ``rises``
    (..., sets) are those of ``sets_of(units, size)``, the result is (...). The best possible set
    gets 0, a random one 0.5 on average; sets that do the same harm count half.
    """
    removed = first_of(np.argsort(scores, kind="stable"), [size])[0]
    chosen = rises[..., [(sets_of(len(scores), size) == removed).all(1).argmax()]]
    less, same = (rises < chosen).sum(-1), (rises == chosen).sum(-1) - 1
    return (less + same / 2) / max(1, rises.shape[-1] - 1)
