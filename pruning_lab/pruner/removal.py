"""Translate a removal of units into slices of tensors and changes of attributes."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import nn

from pruning_lab.coupling.structure import STAYS, Follows, Structure
from pruning_lab.errors import UserError
from pruning_lab.graph.kinds import LAYERS
from pruning_lab.pruner.slicing import Change, Slice, chosen, rescaled_dropout


def check_units(name: str, module: nn.Module, structure: Structure) -> None:
    """Raise UserError for a module that has no units, or whose units cannot be removed."""
    if not isinstance(module, LAYERS):
        raise UserError(
            f"{type(module).__name__} ('{name}') has no units that can be removed; only Linear "
            "and convolution layers have."
        )
    if name not in structure.units or bool((structure.units[name] == STAYS).all()):
        raise _refused(name, structure.frozen[name])


def classes_of(structure: Structure, layer: str, units: torch.Tensor) -> torch.Tensor:
    """Return the classes of ``units`` of a layer; UserError if one cannot be removed."""
    classes = structure.units[layer][units]
    if (classes == STAYS).any():
        stays = units[classes == STAYS].tolist()
        raise _refused(layer, f"unit {stays[0]} must stay: {structure.frozen[layer]}")
    return classes.unique()


def classes_of_plan(structure: Structure, plan: Mapping[str, Any]) -> torch.Tensor:
    """Return the classes of a plan's unit groups; UserError for unknown names or numbers."""
    classes = [torch.empty(0, dtype=torch.long)]
    for name, unit_groups in plan.items():
        if name not in structure.groups:
            known = ", ".join(structure.groups) or "none"
            raise UserError(f"There is no group '{name}'; the groups are {known}.")
        group = structure.groups[name]
        classes.append(group.classes[chosen(f"group '{name}'", unit_groups, len(group))])
    return torch.cat(classes)


def removal(
    model: nn.Module, structure: Structure, classes: torch.Tensor
) -> tuple[list[Slice], list[Change]]:
    """Return the slices and changes that remove ``classes``; UserError if a layer loses all."""
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
    slices = [
        Slice(*_owner(modules, tensor), dim, keep)
        for (tensor, dim), row in structure.tensors.items()
        if (keep := left(row)) is not None
    ]
    for part in slices:
        if not len(part.keep):
            raise UserError(f"Nothing would be left of the {part.name} of {part.module}.")
    changes = [
        _change(modules[follows.module], follows, len(keep))
        for follows in structure.follows
        if (keep := left(follows.classes)) is not None
    ]
    for name, row in structure.dropouts.items():
        if (keep := left(row)) is not None:
            changes.append(rescaled_dropout(modules[name], len(row) - len(keep), len(row)))
    return slices, changes


def _refused(name: str, reason: str) -> UserError:
    return UserError(f"The units of layer '{name}' cannot be removed: {reason}.")


def _owner(modules: Mapping[str, nn.Module], tensor: str) -> tuple[nn.Module, str]:
    path, _, name = tensor.rpartition(".")
    return modules[path], name


def _change(module: nn.Module, follows: Follows, left: int) -> Change:
    value = left // follows.per
    if follows.index is None:
        return Change(module, follows.name, value)
    shape = list(getattr(module, follows.name))
    shape[follows.index] = value
    return Change(module, follows.name, tuple(shape))
