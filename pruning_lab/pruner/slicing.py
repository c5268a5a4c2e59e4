"""Slice tensors and change attributes of modules in place."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from pruning_lab.graph.kinds import Dropout
from pruning_lab.pruner.optimizer import check_optimizer, slice_state


@dataclass(frozen=True)
class Slice:
    """Keep only the entries ``keep`` of one parameter or buffer along ``axis``."""

    module: nn.Module
    name: str
    axis: int
    keep: torch.Tensor


@dataclass(frozen=True)
class Change:
    """A new value for an attribute of a module whose tensors are sliced."""

    module: nn.Module
    name: str
    value: int | float | tuple[int, ...]


def rescaled_dropout(module: nn.Module, removed: int, width: int) -> Change:
    """Return the change of a Dropout's rate to p x (1 - removed share)."""
    assert isinstance(module, Dropout)
    return Change(module, "p", module.p * (1 - removed / width))


def carry_out(
    parts: Iterable[Slice | Change],
    optimizer: torch.optim.Optimizer | None = None,
    rescale_dropout: bool = True,
) -> None:
    """Slice parameters, their gradients, the optimizer's state and buffers; set attributes.

    Parameters stay the same objects. Without ``rescale_dropout`` Dropout rates are not changed.
    """
    keeps: dict[tuple[nn.Module, str], dict[int, torch.Tensor]] = {}  # tensor -> axis -> entries
    changes = []
    for part in parts:
        if isinstance(part, Slice):
            keeps.setdefault((part.module, part.name), {})[part.axis] = part.keep
        elif rescale_dropout or not isinstance(part.module, Dropout):
            changes.append(part)
    if keeps:
        check_optimizer(optimizer)
    with torch.no_grad():
        for (module, name), keep in keeps.items():
            _slice(getattr(module, name), keep, optimizer)
    for change in changes:
        setattr(change.module, change.name, change.value)


def _slice(
    tensor: torch.Tensor, keep: Mapping[int, torch.Tensor], optimizer: torch.optim.Optimizer | None
) -> None:
    shape = tensor.shape
    selected = _selection(shape, {axis: rows.to(tensor.device) for axis, rows in keep.items()})
    smaller = selected(tensor.detach())
    if not isinstance(tensor, nn.Parameter):
        tensor.data = smaller
        return
    gradient, tensor.grad = tensor.grad, None
    # An old loss may keep alive the autograd node that receives this parameter's gradients and that
    # stores the old shape. torch makes a new node only when the type changes.
    interim = torch.float16 if tensor.dtype == torch.float32 else torch.float32
    tensor.data = torch.empty(0, dtype=interim, device=tensor.device)
    tensor.data = smaller
    if gradient is not None:
        tensor.grad = selected(gradient)
    slice_state(optimizer, tensor, shape, selected)


def _selection(
    shape: torch.Size, keep: Mapping[int, torch.Tensor]
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function that copies the entries ``keep`` (axis -> entries) of tensors of ``shape``.

    For a convolution that loses outputs and inputs it copies whole kernels, in one step. The memory
    format stays the same.
    """

    def along_each_axis(tensor: torch.Tensor) -> torch.Tensor:
        left = tensor
        for axis, entries in sorted(keep.items()):
            left = left.index_select(axis, entries.to(tensor.device))
        return _laid_out(left, tensor)

    if set(keep) != {0, 1} or shape[2:].numel() == 1:  # else places would be as large
        return along_each_axis
    places = (keep[0][:, None] * shape[1] + keep[1]).flatten()
    new_shape = (len(keep[0]), len(keep[1]), *shape[2:])

    def kernels(tensor: torch.Tensor) -> torch.Tensor:
        copied = tensor.flatten(0, 1).index_select(0, places.to(tensor.device))
        return _laid_out(copied.view(new_shape), tensor)

    return kernels


def _laid_out(left: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """Return ``left`` with its dimensions in the same order in memory as those of ``whole``."""
    stride, shape = whole.stride(), whole.shape
    if stride == torch.empty(shape, device="meta").stride():
        return left
    order = sorted(range(whole.ndim), key=lambda dim: (-stride[dim], -shape[dim]))
    return torch.empty_permuted(left.shape, order, dtype=left.dtype, device=left.device).copy_(left)
