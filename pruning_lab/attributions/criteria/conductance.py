"""Decrease of the loss that flows through a unit as the input grows from 0 to its value."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.utils._pytree import tree_map_only

from pruning_lab.attributions.evidence.activations import ActivationMetric, Places
from pruning_lab.attributions.evidence.gathering import Evidence
from pruning_lab.attributions.unit_groups import UnitGroups
from pruning_lab.errors import UserError, check_count
from pruning_lab.partial_forward.cut import ModelGraph
from pruning_lab.profiling.passes import Prediction
from pruning_lab.runtime.inputs import Inputs, tensors


class ConductanceAttributionMetric(ActivationMetric):
    """-integral over t from 0 to 1 of sum over positions of dL/da da/dt for the inputs t x.

    Dhamdhere et al., arXiv 1805.12233, for the loss instead of a class's score. The baseline input
    0 is the data set's mean image where images are normalised. Complete: the scores of a layer that
    everything passes through sum to L(0) - L(x). Trapezoid rule with ``steps`` (16) intervals.
    """

    evidence = "activations and gradients along the input's path"
    options = ("steps",)
    own_pass = True
    steps: int = 16

    def _check_options(self) -> None:
        check_count("steps", self.steps)

    def _check_unit_groups(self, unit_groups: Sequence[UnitGroups], after_activation: bool) -> None:
        ActivationMetric._check_unit_groups(self._with({"steps": 1}), unit_groups, after_activation)

    def _predict(self, unit_groups: Sequence[UnitGroups], after_activation: bool) -> Prediction:
        single = super()._predict(unit_groups, after_activation)
        passes = self.steps + 1
        return replace(single, forward=passes * single.forward, backward=passes * single.backward)

    def _evidence(self, graph: ModelGraph, places: Places, x: Inputs, target: Inputs) -> Evidence:
        """Map each node to dL/da times the change of a, summed over the path, as both entries."""
        before = super()._evidence(graph, places, _scaled(x, 0), target)
        flow = {node: torch.zeros_like(a) for node, (a, _) in before.items()}
        for step in range(1, self.steps + 1):
            after = super()._evidence(graph, places, _scaled(x, step / self.steps), target)
            for node, (a, gradient) in after.items():
                a_before, gradient_before = before[node]
                flow[node] += (a - a_before) * (gradient + gradient_before) / 2
            before = after
        return {node: (total, total) for node, total in flow.items()}

    def formula(self, activation: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Minus the flow of ``_evidence``, summed over positions."""
        return -activation.sum(2)


def _scaled(inputs: Inputs, share: float) -> Inputs:
    """Return the inputs times ``share``; UserError for numbers that cannot be scaled."""
    kinds = {str(tensor.dtype) for tensor in tensors(inputs) if not tensor.is_floating_point()}
    if kinds:
        raise UserError(
            f"conductance scales the inputs from 0 to their values, but these are {min(kinds)}. "
            "Choose another criterion: internal_influence scales the layer's activation."
        )
    return tree_map_only(torch.Tensor, lambda tensor: share * tensor, inputs)
