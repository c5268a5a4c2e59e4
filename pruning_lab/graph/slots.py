"""Numbers for the entries of tensors along each dimension, and which of them go together."""

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

FIXED = 0
"""The number of an entry that belongs to no unit: it can never go."""


def components(one: np.ndarray, other: np.ndarray, count: int) -> np.ndarray:
    """For each of ``count`` things its connected component, when one[k] goes with other[k]."""
    graph = coo_array((np.ones(len(one), dtype=bool), (one, other)), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)


class Slots:
    """Every entry of a parameter or buffer along one dimension is a slot and has a number.

    Ties say which slots only go together, freezes which cannot go at all. Classes are the connected
    components of the ties.
    """

    def __init__(self) -> None:
        self._ranges: dict[tuple[str, int], tuple[int, int]] = {}
        self._count = 1  # FIXED is nobody's slot
        self._ties: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._frozen: list[tuple[torch.Tensor, str]] = []
        self._classes: torch.Tensor | None = None  # until the next slot or tie

    def of(self, tensor: str, dim: int, size: int) -> torch.Tensor:
        """The numbers of the ``size`` slots of ``tensor`` along ``dim``."""
        first, length = self._ranges.setdefault((tensor, dim), (self._count, size))
        if first == self._count:
            self._count, self._classes = first + length, None
        return torch.arange(first, first + length)

    def tie(self, one: torch.Tensor, other: torch.Tensor, reason: str) -> None:
        """Corresponding slots go together; one that meets no unit cannot go, for ``reason``."""
        one, other = (part.flatten() for part in torch.broadcast_tensors(one, other))
        fixed = (one == FIXED) != (other == FIXED)
        if fixed.any():
            self.freeze(torch.where(one == FIXED, other, one)[fixed], reason)
        self._ties.append((one[~fixed], other[~fixed]))
        self._classes = None

    def freeze(self, numbers: torch.Tensor, reason: str) -> None:
        """These slots cannot go."""
        self._frozen.append((numbers.flatten(), reason))

    def same(self, one: torch.Tensor, other: torch.Tensor) -> bool:
        """Whether two rows of numbers hold, by the ties so far, the same share of every class."""
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
        """For every number its class."""
        if self._classes is None:
            self._classes = self._components()
        return self._classes

    def _components(self) -> torch.Tensor:
        pairs = [torch.stack(pair) for pair in self._ties]
        edges = torch.cat(pairs, 1).numpy() if pairs else np.zeros((2, 0), dtype=np.int64)
        classes = components(edges[0], edges[1], self._count)
        first = np.unique(classes, return_index=True)[1][classes]
        self._ties = [
            (torch.arange(self._count), torch.from_numpy(first))
        ]  # says the same, shorter
        return torch.from_numpy(classes)

    def reasons(self, classes: torch.Tensor) -> dict[int, str]:
        """Why a class cannot go, the first reason found; classes that may go are not in it."""
        reasons = {int(classes[FIXED]): "it belongs to no unit"}
        for numbers, reason in self._frozen:
            for frozen in classes[numbers].unique().tolist():
                reasons.setdefault(frozen, reason)
        return reasons

    def ranges(self) -> dict[tuple[str, int], torch.Tensor]:
        """(tensor, dimension) -> the numbers of its slots."""
        return {
            key: torch.arange(first, first + length)
            for key, (first, length) in self._ranges.items()
        }
