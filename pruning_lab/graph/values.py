"""What flows through a model while its units are followed: shapes with numbers instead of data."""

from dataclasses import dataclass, field
from fractions import Fraction

import torch

Axes = dict[int, torch.Tensor]
"""dimension -> for every entry along it the number of the slot that it comes from."""


@dataclass(frozen=True)
class Value:
    """A tensor without data, and whose units lie along its dimensions.

    A dimension that is not in ``axes`` belongs to no unit: its entries cannot go.
    """

    tensor: torch.Tensor  # on the meta device
    axes: Axes = field(default_factory=dict)

    @property
    def shape(self) -> torch.Size:
        return self.tensor.shape


@dataclass(frozen=True)
class Extent:
    """A size that the code read off a dimension with units: it shrinks when they go.

    ``value`` is ``factor`` times the number of ``numbers``.
    """

    value: int
    numbers: torch.Tensor
    factor: Fraction = Fraction(1)

    def scaled(self, by: Fraction) -> "Extent":
        """The size times ``by``, where that is a whole number."""
        return Extent(int(self.value * by), self.numbers, self.factor * by)


def sizes(value: Value) -> tuple[int | Extent, ...]:
    """The shape of a value; along dimensions with units extents stand for the numbers."""
    return tuple(
        Extent(size, value.axes[dim]) if dim in value.axes else size
        for dim, size in enumerate(value.shape)
    )
