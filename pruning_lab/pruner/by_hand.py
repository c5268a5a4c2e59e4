"""Cuts that the user names module by module; no structure ensures that they are complete."""

from collections.abc import Iterable

import torch
from torch import nn

from pruning_lab.errors import UserError
from pruning_lab.graph.kinds import (
    COMPUTED,
    LAYERS,
    BatchNorm,
    Convolution,
    Dropout,
    TransposedConvolution,
    inputs_of,
)
from pruning_lab.pruner.slicing import Change, Slice, rescaled_dropout


def check_layer(name: str, module: nn.Module) -> None:
    """Raise UserError for a layer of which single units cannot be removed."""
    _check_stored(name, module)
    if getattr(module, "groups", 1) > 1:
        raise UserError(
            f"Layer '{name}' is a grouped convolution (groups={module.groups}): its units "
            "cannot be removed one by one."
        )


def check_reader(name: str, module: nn.Module, width: int | None) -> None:
    """Raise UserError unless ``module`` reads ``width`` units (None: as many as it has inputs)."""
    kind = type(module).__name__
    if not isinstance(module, (*LAYERS, BatchNorm, Dropout)) or getattr(module, "groups", 1) > 1:
        raise UserError(
            f"The inputs of '{name}' ({kind}) cannot be removed; those of a BatchNorm, "
            "Dropout, Linear or ungrouped convolution can."
        )
    if not isinstance(module, Dropout):
        _check_stored(name, module)
    if width is not None and width < 1:
        raise UserError(f"original_len={width} must be at least 1.")
    if isinstance(module, Dropout):
        if width is None:
            raise UserError(f"'{name}' ({kind}) has no width: original_len must give it.")
        return
    inputs = inputs_of(module)
    if not inputs or inputs % (width or inputs):
        raise UserError(f"'{name}' ({kind}) has {inputs} inputs, no multiple of {width} units.")


def _check_stored(name: str, module: nn.Module) -> None:
    """Raise UserError for a computed weight; called before reading it, which may change it."""
    for tensor in ("weight", "bias"):
        if tensor not in module._parameters:
            raise UserError(f"The {tensor} of '{name}' {COMPUTED}.")


def incoming(module: nn.Module, keep: torch.Tensor, width: int) -> list[Slice | Change]:
    """Return what leaves a module the inputs that belong to ``keep`` of ``width`` units.

    Several consecutive inputs belong to a unit that was flattened: one for each position.
    """
    if isinstance(module, Dropout):
        return [rescaled_dropout(module, width - len(keep), width)]
    positions = inputs_of(module) // width
    inputs = keep[:, None] * positions + torch.arange(positions, device="cpu")
    return resized(module, "in", inputs.flatten())


def resized(module: nn.Module, direction: str, keep: torch.Tensor) -> list[Slice | Change]:
    """Return what leaves a layer the outputs or inputs ``keep``, or a BatchNorm the channels."""
    if isinstance(module, BatchNorm):
        axes = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), 0)
        attribute = "num_features"
    else:
        axes = {"weight": 0, "bias": 0} if direction == "out" else {"weight": 1}
        if isinstance(module, TransposedConvolution):
            axes["weight"] = 1 - axes["weight"]
        kind = "channels" if isinstance(module, Convolution) else "features"
        attribute = f"{direction}_{kind}"
    slices = [
        Slice(module, name, axis, keep)
        for name, axis in axes.items()
        if getattr(module, name, None) is not None
    ]
    return [*slices, Change(module, attribute, len(keep))]


def checked(model: nn.Module, parts: Iterable[Slice | Change]) -> list[Slice | Change]:
    """Return the parts without slices that keep everything.

    Raises UserError for a tensor that is too short, or that another module shares.
    """
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(f"{name}.{key}")
    needed = []
    for part in parts:
        if isinstance(part, Slice):
            tensor = getattr(part.module, part.name)
            width, sharing = tensor.shape[part.axis], owners.get(id(tensor), [])
            if len(part.keep) == width:
                continue
            if part.keep[-1] >= width:
                raise UserError(
                    f"The {part.name} of {part.module} has {width} entries, fewer than the module "
                    "says: it was resized by hand. Give its attributes the new width, too."
                )
            if len(sharing) > 1:
                raise UserError(
                    f"{' and '.join(sharing)} are one parameter: it cannot be sliced for one of "
                    "them alone. Give each its own copy first."
                )
        needed.append(part)
    return needed
