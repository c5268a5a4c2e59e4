"""Slices and attribute changes of one module that loses some of its inputs or outputs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pruning_lab.errors import UserError
from pruning_lab.graph.kinds import (
    COMPUTED,
    BatchNorm,
    Convolution,
    Dropout,
    TransposedConvolution,
)


@dataclass(frozen=True)
class Slice:
    """Keep only the entries ``keep`` of one parameter or buffer along ``axis``."""

    module: nn.Module
    name: str
    axis: int
    keep: torch.Tensor

    @property
    def width(self) -> int:
        """The present length of the axis."""
        tensor: torch.Tensor = getattr(self.module, self.name)
        return tensor.shape[self.axis]


@dataclass(frozen=True)
class Change:
    """A new value for an attribute of a module whose tensors are sliced."""

    module: nn.Module
    name: str
    value: int | float | tuple[int, ...]


@dataclass(frozen=True)
class Follower:
    """A module, named by the user, that loses inputs when units of a layer before it are removed.

    ``positions`` is how many consecutive inputs belong to one unit: H*W after a Flatten, else 1.
    """

    module: nn.Module
    name: str
    positions: int


def together(slices: list[Slice]) -> dict[tuple[nn.Module, str], dict[int, torch.Tensor]]:
    """Collect all slices of each tensor: (module, name) -> axis -> entries to keep."""
    by_tensor: dict[tuple[nn.Module, str], dict[int, torch.Tensor]] = {}
    for part in slices:
        by_tensor.setdefault((part.module, part.name), {})[part.axis] = part.keep
    return by_tensor


def selection(
    shape: torch.Size, keep: Mapping[int, torch.Tensor]
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function that copies the entries ``keep`` (axis -> entries) of tensors of ``shape``.

    For a convolution that loses outputs and inputs it copies whole kernels, in one step. The memory
    format stays the same.
    """
    if set(keep) != {0, 1} or shape[2:].numel() == 1:  # else places would be as large
        return lambda tensor: _laid_out(_one_by_one(tensor, keep), tensor)
    rows, columns = keep[0], keep[1]
    places = (rows[:, None] * shape[1] + columns).flatten()
    new_shape = (len(rows), len(columns), *shape[2:])

    def selected(tensor: torch.Tensor) -> torch.Tensor:
        kernels = tensor.flatten(0, 1).index_select(0, places.to(tensor.device))
        return _laid_out(kernels.view(new_shape), tensor)

    return selected


def _laid_out(left: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """Return ``left`` with its dimensions in the same order in memory as those of ``whole``."""
    stride, shape = whole.stride(), whole.shape
    if stride == torch.empty(shape, device="meta").stride():
        return left
    order = sorted(range(whole.ndim), key=lambda dim: (-stride[dim], -shape[dim]))
    return torch.empty_permuted(left.shape, order, dtype=left.dtype, device=left.device).copy_(left)


def _one_by_one(tensor: torch.Tensor, keep: Mapping[int, torch.Tensor]) -> torch.Tensor:
    for axis, entries in sorted(keep.items()):
        tensor = tensor.index_select(axis, entries.to(tensor.device))
    return tensor


def slices_of(module: nn.Module, direction: str, keep: torch.Tensor) -> list[Slice]:
    """Return slices that keep ``keep`` of a layer's outputs or inputs, or of a BatchNorm."""
    if isinstance(module, BatchNorm):
        names = ("weight", "bias", "running_mean", "running_var")
        wanted = [(name, 0) for name in names]
    elif direction == "in":
        wanted = [("weight", 0 if isinstance(module, TransposedConvolution) else 1)]
    else:
        wanted = [("weight", 1 if isinstance(module, TransposedConvolution) else 0), ("bias", 0)]
    return [
        Slice(module, name, axis, keep)
        for name, axis in wanted
        if getattr(module, name, None) is not None
    ]


def change_of(module: nn.Module, direction: str, width: int) -> Change:
    """Return the change of the attribute that holds the module's width."""
    if isinstance(module, BatchNorm):
        return Change(module, "num_features", width)
    kind = "channels" if isinstance(module, Convolution) else "features"
    return Change(module, f"{direction}_{kind}", width)


def rescaled_dropout(module: nn.Module, removed: int, width: int) -> Change:
    """Return the change of a Dropout's rate to p x (1 - removed share)."""
    assert isinstance(module, Dropout)
    return Change(module, "p", module.p * (1 - removed / width))


def chosen(name: str, indices: Any, width: int) -> torch.Tensor:
    """Return ``indices`` sorted and unique; UserError unless they are units 0 to ``width`` - 1."""
    units = _whole_numbers(name, indices)
    if len(units) and (units[0] < 0 or units[-1] >= width):
        wrong = int(units[0] if units[0] < 0 else units[-1])
        raise UserError(f"{name} has no unit {wrong}: its units are 0 to {width - 1}.")
    return units


def kept(name: str, indices: Any, width: int) -> torch.Tensor:
    """Return the units of ``width`` without ``indices``, ascending; UserError if none remains."""
    removed = chosen(name, indices, width)
    if len(removed) == width:
        raise UserError(f"All {width} units of {name} would be removed; at least one must remain.")
    mask = torch.ones(width, dtype=torch.bool, device="cpu")
    mask[removed] = False
    return mask.nonzero().flatten()


def check_stored(name: str, module: nn.Module) -> None:
    """Raise UserError for a computed weight; called before reading it, which may change it."""
    for tensor in ("weight", "bias"):
        if not isinstance(module, Dropout) and tensor not in module._parameters:
            raise UserError(f"The {tensor} of '{name}' {COMPUTED}.")


def check_slices(model: nn.Module, wanted: list[Slice]) -> None:
    """Raise UserError for a tensor that is too short, or that another module shares."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(f"{name}.{key}")
    for part in wanted:
        if part.keep[-1] >= part.width:
            raise UserError(
                f"The {part.name} of {part.module} has {part.width} entries, fewer than the module "
                "says: it was resized by hand. Give its attributes the new width, too."
            )
        sharing = owners.get(id(getattr(part.module, part.name)), [])
        if len(sharing) > 1:
            raise UserError(
                f"{' and '.join(sharing)} are one parameter: it cannot be sliced for one of them "
                "alone. Give each its own copy first."
            )


def _whole_numbers(name: str, indices: Any) -> torch.Tensor:
    try:
        given = torch.as_tensor(indices, device="cpu").flatten()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise UserError(f"{indices!r} are not indices of units of {name}: {error}.") from error
    if len(given) and (
        given.is_floating_point() or given.is_complex() or given.dtype == torch.bool
    ):
        raise UserError(
            f"Units of {name} are named by whole numbers, not by {given.dtype} values; "
            "np.flatnonzero(mask) turns a mask into indices."
        )
    return given.long().unique()
