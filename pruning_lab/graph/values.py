"""What flows through a model while its units are followed: shapes with numbers instead of data."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from torch import fx

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


def mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    """``function`` of everything in containers within each other, whose types stay.

    Those that tracing has frozen become plain ones: code may change what it is given.
    """
    if isinstance(value, dict):
        made = (
            {} if isinstance(value, fx.immutable_collections.immutable_dict) else copy.copy(value)
        )
        for key, each in value.items():
            made[key] = mapped(each, function)
        return made
    if isinstance(value, list):
        return [mapped(each, function) for each in value]
    if isinstance(value, tuple):
        entries = [mapped(each, function) for each in value]
        return type(value)(*entries) if hasattr(value, "_fields") else type(value)(entries)
    if isinstance(value, slice):
        return slice(*(mapped(each, function) for each in (value.start, value.stop, value.step)))
    return function(value)
