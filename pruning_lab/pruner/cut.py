"""Slice tensors and change attributes of a model in place."""

from collections.abc import Mapping

import torch
from torch import nn

from pruning_lab.coupling.structure import Structure
from pruning_lab.graph.kinds import Dropout
from pruning_lab.pruner.optimizer import check_optimizer, slice_state
from pruning_lab.pruner.removal import removal
from pruning_lab.pruner.slicing import Change, Slice, selection, together


def remove(
    model: nn.Module,
    structure: Structure,
    classes: torch.Tensor,
    optimizer: torch.optim.Optimizer | None = None,
    rescale_dropout: bool = True,
) -> None:
    """Remove all units of ``classes``, as numbered in ``structure``, from ``model``, in place.

    Raises UserError, with nothing changed, if a layer would lose all its units.
    """
    carry_out(*removal(model, structure, classes), optimizer, rescale_dropout)


def carry_out(
    slices: list[Slice],
    changes: list[Change],
    optimizer: torch.optim.Optimizer | None = None,
    rescale_dropout: bool = True,
) -> None:
    """Slice parameters, their gradients, the optimizer's state and buffers; set attributes.

    Parameters stay the same objects. Without ``rescale_dropout`` Dropout rates are not changed.
    """
    if slices:
        check_optimizer(optimizer)
    with torch.no_grad():
        for (module, name), keep in together(slices).items():
            _slice(getattr(module, name), keep, optimizer)
    for change in changes:
        if rescale_dropout or not isinstance(change.module, Dropout):
            setattr(change.module, change.name, change.value)


def _slice(
    tensor: torch.Tensor, keep: Mapping[int, torch.Tensor], optimizer: torch.optim.Optimizer | None
) -> None:
    shape = tensor.shape
    keep = {axis: entries.to(tensor.device) for axis, entries in keep.items()}
    selected = selection(shape, keep)
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
