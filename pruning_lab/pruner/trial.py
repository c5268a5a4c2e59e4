"""What a plan would leave of a model, found out without touching it."""

import copy

from torch import nn

from pruning_lab.plan import Plan
from pruning_lab.pruner.pruner import Pruner


class Trial:
    """Carries plans out on copies that have shapes but hold no numbers."""

    def __init__(self, model: nn.Module, input_size: tuple[int, ...]) -> None:
        self._skeleton = copy.deepcopy(model).to("meta")
        self._input_size = input_size

    def after(self, plan: Plan) -> nn.Module:
        """The model after ``plan``, on torch's meta device: its cost can be counted."""
        model = copy.deepcopy(self._skeleton)
        carry_out(plan, model, Pruner(model, self._input_size, "meta"))
        return model


def carry_out(plan: Plan, model: nn.Module, pruner: Pruner) -> None:
    """Remove the units of a plan, layer by layer."""
    for layer, units in plan.items():
        pruner.prune_model(model.get_submodule(layer), units)
