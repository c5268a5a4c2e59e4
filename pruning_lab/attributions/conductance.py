"""How much of what the loss falls by, from no input to the whole one, flows through a unit."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch

from pruning_lab.attributions.activations import ActivationMetric, Places
from pruning_lab.attributions.gathering import Evidence
from pruning_lab.attributions.players import Players
from pruning_lab.errors import UserError, check_count
from pruning_lab.ledger import Prediction


class ConductanceAttributionMetric(ActivationMetric):
    """-integral over t from 0 to 1 of sum over positions of dL/da da/dt for the inputs t x.

    Dhamdhere et al., arXiv 1805.12233, of the loss instead of a class's score, with 0 as baseline:
    the data set's mean image where pictures are normalised. Complete: the scores of a layer that
    everything passes through sum to L(0) - L(x). By the trapezoid rule over ``steps`` parts.
    """

    evidence: ClassVar[str] = "activations and gradients along the input's path"
    options: ClassVar[tuple[str, ...]] = ("steps",)
    own_pass: ClassVar[bool] = True
    steps: int = 16

    def _check_options(self) -> None:
        check_count("steps", self.steps)

    def _check_players(self, players: Sequence[Players], behind: bool) -> None:
        x = self.batches.first(1)
        if not x.is_floating_point():
            raise UserError(
                f"conductance follows a path from 0 to the inputs, which {x.dtype} has not. Choose "
                "another criterion: internal_influence follows the layer's activation."
            )
        ActivationMetric._check_players(self._with({"steps": 1}), players, behind)

    def _predict(self, players: Sequence[Players], behind: bool) -> Prediction:
        one = super()._predict(players, behind)
        passes = self.steps + 1
        return replace(one, forward=passes * one.forward, backward=passes * one.backward)

    def _evidence(
        self, graph: Any, places: Places, x: torch.Tensor, target: torch.Tensor
    ) -> Evidence:
        """At every node dL/da times the change of a, summed over the path; twice."""
        before = super()._evidence(graph, places, 0 * x, target)
        flow = {node: torch.zeros_like(a) for node, (a, _) in before.items()}
        for step in range(1, self.steps + 1):
            now = super()._evidence(graph, places, step / self.steps * x, target)
            for node, (a, gradient) in now.items():
                old, old_gradient = before[node]
                flow[node] += (a - old) * (gradient + old_gradient) / 2
            before = now
        return {node: (each, each) for node, each in flow.items()}

    def formula(self, activation: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Of what has flowed at each position."""
        return -activation.sum(2)
