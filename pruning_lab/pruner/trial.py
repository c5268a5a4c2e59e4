"""Remove units from copies on the meta device, to learn what that would do."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from pruning_lab.cost import copy_to_count
from pruning_lab.graph import Group, Structure
from pruning_lab.graph.as_run import check_after_cut
from pruning_lab.graph.follow import skeleton
from pruning_lab.plan import Plan
from pruning_lab.pruner.cut import remove
from pruning_lab.pruner.removal import classes_of_plan


class Trial:
    """Makes pruned copies of a model, whose cost can be counted; they hold no numbers."""

    def __init__(self, model: nn.Module, input_size: tuple[int, ...], structure: Structure) -> None:
        self._bones = copy_to_count(model, input_size)
        self._structure = structure

    def after(self, plan: Plan) -> nn.Module:
        """Return a copy of the model without the units of ``plan``."""
        return _without(self._bones, self._structure, plan)


def check_cut(model: nn.Module, structure: Structure, input_size: Sequence[int]) -> None:
    """Raise UntraceableError if the code of ``model`` calculates with the number of its units.

    One player of each group is removed from a copy on the meta device, which must then run the same
    operations with the same numbers as the whole model.
    """
    bones = skeleton(model)
    plan = {name: [player] for name, group in structure.groups.items() for player in _spared(group)}
    cut = _without(bones, structure, plan)
    dtype = next((each.dtype for each in model.parameters()), torch.float32)
    x = torch.empty(2, *input_size, dtype=dtype, device="meta")
    for training in (False, True):
        check_after_cut(bones.train(training), cut.train(training), x)


def _spared(group: Group) -> list[int]:
    """Return the first player whose removal leaves every layer a unit, in a list; [] if none."""
    rows = group.players.values()
    return [each for each in range(len(group)) if all((row != each).any() for row in rows)][:1]


def _without(model: nn.Module, structure: Structure, plan: Mapping[str, Any]) -> nn.Module:
    """Return a copy of ``model`` without the units of ``plan``."""
    cut = copy.deepcopy(model)
    remove(cut, structure, classes_of_plan(structure, plan), rescale_dropout=False)
    return cut
