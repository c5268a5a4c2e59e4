"""Remove classes of coupled units: which tensors and attributes of a model they change."""

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import torch
from torch import nn

from pruning_lab.coupling.structure import STAYS, Structure
from pruning_lab.errors import UserError
from pruning_lab.pruner.slicing import Change, Slice, carry_out, rescaled_dropout

Indices = Sequence[int] | np.ndarray | torch.Tensor


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
    marked = structure.marked(classes)
    modules = dict(model.named_modules(remove_duplicate=False))

    @cache
    def left(row: torch.Tensor) -> torch.Tensor | None:
        """Return the indices of a row that remain, or None if all do."""
        removed = marked[row]
        return (~removed).nonzero().flatten() if removed.any() else None

    for layer, row in structure.units.items():
        if (keep := left(row)) is not None and not len(keep):
            raise UserError(
                f"All {len(row)} units of layer '{layer}' would be removed; at least one must "
                "remain. Units coupled to those that you name are removed with them."
            )
    parts: list[Slice | Change] = []
    for (tensor, dim), row in structure.tensors.items():
        if (keep := left(row)) is not None:
            path, _, name = tensor.rpartition(".")
            if not len(keep):
                raise UserError(f"Nothing would be left of the {name} of {modules[path]}.")
            parts.append(Slice(modules[path], name, dim, keep))
    for follows in structure.follows:
        if (keep := left(follows.classes)) is not None:
            module, value = modules[follows.module], len(keep) // follows.per
            if follows.index is None:
                parts.append(Change(module, follows.name, value))
            else:
                shape = getattr(module, follows.name)
                changed = (*shape[: follows.index], value, *shape[follows.index + 1 :])
                parts.append(Change(module, follows.name, changed))
    for path, row in structure.dropouts.items():
        if (keep := left(row)) is not None:
            parts.append(rescaled_dropout(modules[path], len(row) - len(keep), len(row)))
    carry_out(parts, optimizer, rescale_dropout)


def classes_of(structure: Structure, layer: str, indices: Indices) -> torch.Tensor:
    """Return the classes of units of a layer; UserError if one of them cannot be removed."""
    row = structure.units.get(layer, torch.tensor([STAYS]))
    if (row == STAYS).all():
        raise _refused(layer, structure.frozen[layer])
    units = chosen(f"layer '{layer}'", indices, len(row))
    stays = units[row[units] == STAYS].tolist()
    if stays:
        raise _refused(layer, f"unit {stays[0]} must stay: {structure.frozen[layer]}")
    return row[units].unique()


def classes_of_plan(structure: Structure, plan: Mapping[str, Indices]) -> torch.Tensor:
    """Return the classes of a plan's unit groups; UserError for unknown names or numbers."""
    classes = [torch.empty(0, dtype=torch.long)]
    for name, unit_groups in plan.items():
        if name not in structure.groups:
            known = ", ".join(structure.groups) or "none"
            raise UserError(f"There is no group '{name}'; the groups are {known}.")
        group = structure.groups[name]
        classes.append(group.classes[chosen(f"group '{name}'", unit_groups, len(group))])
    return torch.cat(classes)


def chosen(name: str, indices: Indices, width: int) -> torch.Tensor:
    """Return ``indices`` sorted and unique; UserError unless they are units 0 to ``width`` - 1."""
    try:
        given = torch.as_tensor(indices, device="cpu").flatten()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise UserError(f"{indices!r} are not indices of units of {name}: {error}.") from error
    no_integers = given.is_floating_point() or given.is_complex() or given.dtype == torch.bool
    if len(given) and no_integers:
        raise UserError(
            f"Units of {name} are named by whole numbers, not by {given.dtype} values; "
            "np.flatnonzero(mask) turns a mask into indices."
        )
    units = given.long().unique()
    if len(units) and (units[0] < 0 or units[-1] >= width):
        wrong = int(units[0] if units[0] < 0 else units[-1])
        raise UserError(f"{name} has no unit {wrong}: its units are 0 to {width - 1}.")
    return units


def kept(name: str, indices: Indices, width: int) -> torch.Tensor:
    """Return the units of ``width`` without ``indices``, ascending; UserError if none remains."""
    removed = chosen(name, indices, width)
    if len(removed) == width:
        raise UserError(f"All {width} units of {name} would be removed; at least one must remain.")
    units = torch.arange(width, device="cpu")
    return units[~torch.isin(units, removed)]


def _refused(name: str, reason: str) -> UserError:
    return UserError(f"The units of layer '{name}' cannot be removed: {reason}.")
