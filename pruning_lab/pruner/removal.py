"""From units that go to the slices of tensors and the attributes that must follow."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from pruning_lab.errors import UserError
from pruning_lab.graph.kinds import LAYERS
from pruning_lab.graph.structure import STAYS, Follows, Structure
from pruning_lab.pruner.slicing import Change, Slice, chosen, rescaled_dropout


def check_units(name: str, module: nn.Module, structure: Structure) -> None:
    """UserError for a module that has no units, or whose units cannot go."""
    if not isinstance(module, LAYERS):
        raise UserError(
            f"{type(module).__name__} ('{name}') has no units that can be removed; only Linear "
            "and convolution layers have."
        )
    if name not in structure.units or bool((structure.units[name] == STAYS).all()):
        raise _refused(name, structure.frozen[name])


def classes_of(structure: Structure, layer: str, units: torch.Tensor) -> torch.Tensor:
    """The classes of some units of a layer; UserError for units that cannot go."""
    classes = structure.units[layer][units]
    if (classes == STAYS).any():
        stays = units[classes == STAYS].tolist()
        raise _refused(layer, f"unit {stays[0]} cannot go: {structure.frozen[layer]}")
    return classes.unique()


def classes_of_plan(structure: Structure, plan: Mapping[str, Any]) -> torch.Tensor:
    """The classes of some players of some groups; UserError for unknown groups or players."""
    found = [torch.empty(0, dtype=torch.long)]
    for name, players in plan.items():
        if name not in structure.groups:
            known = ", ".join(structure.groups) or "none"
            raise UserError(f"There is no group '{name}'; the groups are {known}.")
        group = structure.groups[name]
        found.append(group.classes[chosen(f"group '{name}'", players, len(group))])
    return torch.cat(found)


def removal(
    model: nn.Module, structure: Structure, classes: torch.Tensor
) -> tuple[list[Slice], list[Change]]:
    """What to slice and to change so that these classes are gone; UserError if nothing stays."""
    marked = structure.marked(classes)
    for layer, row in structure.units.items():
        if marked[row].all():
            raise UserError(
                f"All {len(row)} units of layer '{layer}' would go; at least one must stay."
            )
    slices = [
        Slice(*_owner(model, tensor), dim, (~gone).nonzero().flatten())
        for (tensor, dim), row in structure.tensors.items()
        if (gone := marked[row]).any()
    ]
    for part in slices:
        if not len(part.keep):
            raise UserError(f"Nothing would be left of the {part.name} of {part.module}.")
    changes = [
        _change(model, each, int((~marked[each.classes]).sum()))
        for each in structure.follows
        if marked[each.classes].any()
    ]
    for name, row in structure.dropouts.items():
        if (gone := marked[row]).any():
            changes.append(rescaled_dropout(model.get_submodule(name), int(gone.sum()), len(row)))
    return slices, changes


def _refused(name: str, reason: str) -> UserError:
    return UserError(f"The units of layer '{name}' cannot be removed: {reason}.")


def _owner(model: nn.Module, tensor: str) -> tuple[nn.Module, str]:
    path, _, name = tensor.rpartition(".")
    return model.get_submodule(path), name


def _change(model: nn.Module, follows: Follows, left: int) -> Change:
    module, value = model.get_submodule(follows.module), left // follows.per
    if follows.index is None:
        return Change(module, follows.name, value)
    shape = list(getattr(module, follows.name))
    shape[follows.index] = value
    return Change(module, follows.name, tuple(shape))
