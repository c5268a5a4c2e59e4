"""Number the entries of tensors along each dimension, and find those that are coupled."""

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

FIXED = 0
"""The slot number of entries that belong to no unit and cannot be removed."""


def components(one: np.ndarray, other: np.ndarray, count: int) -> np.ndarray:
    """Return the connected component of each of ``count`` items, one[k] being tied to other[k]."""
    graph = coo_array((np.ones(len(one), dtype=bool), (one, other)), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)


class Slots:
    """Numbered slots, one for every entry of a parameter or buffer along one dimension.

    Tied slots can only be removed together, frozen ones not at all. Classes are the connected
    components of the ties.
    """

    def __init__(self) -> None:
        self._ranges: dict[tuple[str, int], tuple[int, int]] = {}
        self._count = 1  # FIXED is not a slot
        self._ties = [torch.full((2, 1), FIXED)]  # pairs of numbers
        self._frozen: list[tuple[torch.Tensor, str]] = []
        self._classes: torch.Tensor | None = None  # valid until the next slot or tie

    def of(self, tensor: str, dim: int, size: int) -> torch.Tensor:
        """Return the numbers of the ``size`` slots of ``tensor`` along ``dim``."""
        first, length = self._ranges.setdefault((tensor, dim), (self._count, size))
        if first == self._count:
            self._count, self._classes = first + length, None
        return torch.arange(first, first + length)

    def tie(self, one: torch.Tensor, other: torch.Tensor, reason: str) -> None:
        """Tie corresponding slots; freeze, for ``reason``, a slot that corresponds to FIXED."""
        one, other = (row.flatten() for row in torch.broadcast_tensors(one, other))
        fixed = (one == FIXED) != (other == FIXED)
        if fixed.any():
            self.freeze(torch.where(one == FIXED, other, one)[fixed], reason)
        self._ties.append(torch.stack([one[~fixed], other[~fixed]]))
        self._classes = None

    def freeze(self, numbers: torch.Tensor, reason: str) -> None:
        """Exclude these slots from removal, for ``reason``."""
        self._frozen.append((numbers.flatten(), reason))

    def same(self, one: torch.Tensor, other: torch.Tensor) -> bool:
        """Return True if, by the ties so far, every class has the same share in both rows."""
        if torch.equal(one, other):
            return True
        classes = self.classes()
        mine, yours = (classes[row].bincount(minlength=self._count) for row in (one, other))
        return torch.equal(mine * len(other), yours * len(one))

    def classes(self) -> torch.Tensor:
        """Return the class of every number."""
        if self._classes is None:
            one, other = torch.cat(self._ties, 1).numpy()
            classes = components(one, other, self._count)
            first = np.unique(classes, return_index=True)[1][classes]
            equivalent = np.stack([np.arange(self._count), first])  # and shorter
            self._ties, self._classes = [torch.from_numpy(equivalent)], torch.from_numpy(classes)
        return self._classes

    def reasons(self) -> dict[int, str]:
        """Return, for each class that cannot be removed, the first reason that was recorded."""
        classes = self.classes()
        reasons = {int(classes[FIXED]): "it belongs to no unit"}
        for numbers, reason in self._frozen:
            for frozen in classes[numbers].unique().tolist():
                reasons.setdefault(frozen, reason)
        return reasons

    def ranges(self) -> dict[tuple[str, int], torch.Tensor]:
        """Return (tensor, dimension) -> the numbers of its slots."""
        return {
            key: torch.arange(first, first + length)
            for key, (first, length) in self._ranges.items()
        }
