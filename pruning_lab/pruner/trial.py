"""Try removals on copies of a model on the meta device, to see their effect."""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from pruning_lab.coupling.structure import CoupledLayers, Structure
from pruning_lab.graph.added_code import skeleton
from pruning_lab.graph.as_run import check_after_cut
from pruning_lab.profiling.flops import copy_to_count
from pruning_lab.pruner.removal import Indices, classes_of_plan, remove
from pruning_lab.pruning.plan import Plan


class Trial:
    """Make pruned copies of a model, whose FLOPs can be counted; their tensors hold no data."""

    def __init__(self, model: nn.Module, input_size: tuple[int, ...], structure: Structure) -> None:
        self._bones = copy_to_count(model, input_size)
        self._structure = structure

    def after(self, plan: Plan) -> nn.Module:
        """Return a copy of the model without the units of ``plan``."""
        return _without(self._bones, self._structure, plan)


def check_cut(model: nn.Module, structure: Structure, input_size: Sequence[int]) -> None:
    """Raise UntraceableError if the code of ``model`` calculates with the number of its units.

    A copy on the meta device loses one unit group of each set of coupled layers. It must then run
    the same operations with the same numbers as the unpruned model.
    """
    bones = skeleton(model)
    plan = {name: _spared(group) for name, group in structure.groups.items()}
    cut = _without(bones, structure, plan)
    dtype = next((parameter.dtype for parameter in model.parameters()), torch.float32)
    x = torch.empty(2, *input_size, dtype=dtype, device="meta")
    for training in (False, True):
        check_after_cut(bones.train(training), cut.train(training), x)


def _spared(group: CoupledLayers) -> list[int]:
    """List the first unit group whose removal leaves every layer a unit; [] if none does."""
    rows = group.unit_groups.values()
    return [k for k in range(len(group)) if all((row != k).any() for row in rows)][:1]


def _without(model: nn.Module, structure: Structure, plan: Mapping[str, Indices]) -> nn.Module:
    """Return a copy of ``model`` without the units of ``plan``."""
    cut = copy.deepcopy(model)
    remove(cut, structure, classes_of_plan(structure, plan), rescale_dropout=False)
    return cut
