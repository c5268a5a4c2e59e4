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
        self._ties: list[tuple[torch.Tensor, torch.Tensor]] = []
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
        self._ties.append((one[~fixed], other[~fixed]))
        self._classes = None

    def freeze(self, numbers: torch.Tensor, reason: str) -> None:
        """Exclude these slots from removal, for ``reason``."""
        self._frozen.append((numbers.flatten(), reason))

    def same(self, one: torch.Tensor, other: torch.Tensor) -> bool:
        """Return True if, by the ties so far, every class has the same share in both rows."""
        if torch.equal(one, other):
            return True
        classes = self.classes()
        (mine, my_counts), (yours, your_counts) = (
            classes[numbers].unique(return_counts=True) for numbers in (one, other)
        )
        return torch.equal(mine, yours) and torch.equal(
            my_counts * len(other), your_counts * len(one)
        )

    def classes(self) -> torch.Tensor:
        """Return the class of every number."""
        if self._classes is None:
            self._classes = self._components()
        return self._classes

    def _components(self) -> torch.Tensor:
        pairs = [torch.stack(pair) for pair in self._ties]
        edges = torch.cat(pairs, 1).numpy() if pairs else np.zeros((2, 0), dtype=np.int64)
        classes = components(edges[0], edges[1], self._count)
        first = np.unique(classes, return_index=True)[1][classes]
        self._ties = [(torch.arange(self._count), torch.from_numpy(first))]  # equivalent, shorter
        return torch.from_numpy(classes)

    def reasons(self, classes: torch.Tensor) -> dict[int, str]:
        """Return, for each class that cannot be removed, the first reason that was recorded."""
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
