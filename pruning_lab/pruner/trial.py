"""What a plan would leave of a model, found out without touching it."""

import copy

from torch import nn

from pruning_lab.cost import copy_to_count
from pruning_lab.plan import Plan
from pruning_lab.pruner.pruner import Pruner


class Trial:
    """Carries plans out on copies, which hold no numbers where the model runs without."""

    def __init__(self, pruner: Pruner) -> None:
        self._bones = copy_to_count(pruner.model, pruner.input_size)
        self._input_size = pruner.input_size
        self._structure = pruner.structure

    def after(self, plan: Plan) -> nn.Module:
        """The model after ``plan``: its cost can be counted."""
        model = copy.deepcopy(self._bones)
        Pruner(model, self._input_size, "meta", structure=self._structure).prune_groups(plan)
        return model
