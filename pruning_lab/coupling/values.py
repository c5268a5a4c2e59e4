"""Values that run through a model while its units are followed: shapes with slot numbers."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, TypeVar

import torch
from torch import fx

from pruning_lab.coupling.slots import FIXED

Axes = dict[int, torch.Tensor]
"""Dimension -> for every entry along it, the number of the slot that it comes from."""

Key = tuple[str, str, int | None]
"""Module, its attribute that holds a width, and the position in it if it is a tuple."""

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Value:
    """A tensor without data, and the slots along those of its dimensions that hold units.

    The entries along a dimension that is not in ``axes`` belong to no unit.
    """

    tensor: torch.Tensor  # on the meta device
    axes: Axes = field(default_factory=dict)

    @property
    def shape(self) -> torch.Size:
        return self.tensor.shape

    def row(self, dim: int) -> torch.Tensor:
        """Return the numbers along ``dim``: FIXED if it holds no units."""
        dim %= self.tensor.ndim
        return self.axes.get(dim, torch.full((self.shape[dim],), FIXED))

    def dims(self, given: int | Sequence[int] | None) -> list[int]:
        """Return the dimensions ``given``, counted from the first; None stands for all."""
        if given is None:
            return list(range(self.tensor.ndim))
        return [dim % self.tensor.ndim for dim in ([given] if isinstance(given, int) else given)]


@dataclass(frozen=True)
class Extent:
    """A size that the code read off a dimension with units: it shrinks when they are removed.

    ``value`` is ``factor * len(numbers)``.
    """

    value: int
    numbers: torch.Tensor
    factor: Fraction = Fraction(1)


def sizes(value: Value) -> tuple[int | Extent, ...]:
    """Return the shape of a value, with an Extent for each dimension that holds units."""
    return tuple(
        Extent(size, value.axes[dim]) if dim in value.axes else size
        for dim, size in enumerate(value.shape)
    )


def all_of(kind: type[Kind], arguments: Any) -> list[Kind]:
    """Return everything of this type in nested containers."""
    items: list[Any] = []
    fx.node.map_aggregate(arguments, items.append)
    return [item for item in items if isinstance(item, kind)]


def mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    """Apply ``function`` to everything in nested containers, whose types stay.

    Immutable containers of torch.fx become plain ones: code may change its arguments.
    """
    if isinstance(value, dict):
        immutable = isinstance(value, fx.immutable_collections.immutable_dict)
        made = {} if immutable else copy.copy(value)
        for key, item in value.items():
            made[key] = mapped(item, function)
        return made
    if isinstance(value, list):
        return [mapped(item, function) for item in value]
    if isinstance(value, tuple):
        entries = [mapped(item, function) for item in value]
        return type(value)(*entries) if hasattr(value, "_fields") else type(value)(entries)
    if isinstance(value, slice):
        return slice(*(mapped(item, function) for item in (value.start, value.stop, value.step)))
    return function(value)
