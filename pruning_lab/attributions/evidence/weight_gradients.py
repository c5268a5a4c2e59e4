"""Criteria on the gradients of a unit's weights, sample by sample."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import nn
from torch.func import functional_call, vjp, vmap

from pruning_lab.attributions.base import Site
from pruning_lab.attributions.evidence.activations import ActivationMetric
from pruning_lab.attributions.evidence.gathering import Evidence, Gathering, ask
from pruning_lab.attributions.evidence.weights import rows_of, weight_of
from pruning_lab.attributions.unit_groups import UnitGroups
from pruning_lab.errors import UserError
from pruning_lab.partial_forward.interface import ModelGraph
from pruning_lab.profiling import passes
from pruning_lab.profiling.passes import Prediction


class WeightGradientMetric(ActivationMetric):
    """A criterion on weights and on the gradient of each sample's own loss there.

    The gradient is computed from the layer's input and from the gradient at the layer's own output.
    A unit group's score is the sum of its units' scores. Raises UserError for a layer without
    weights, or with computed ones.
    """

    evidence: ClassVar[str] = "weights and their gradients"

    @abstractmethod
    def formula(self, weights: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Return scores (N, units) from weights (units, K) and gradients (N, units, K)."""

    def _predict(self, unit_groups: Sequence[UnitGroups], after_activation: bool) -> Prediction:
        """Add to the shared pass that each layer runs again, and as much for its weights."""
        shared, graph = super()._predict(unit_groups, after_activation), self._graph(unit_groups)
        gatherings = [self._gathering(graph, groups, after_activation) for groups in unit_groups]
        shares = sum(sum(share for _, share in places.inputs) for places in gatherings)
        return replace(shared, forward=shared.forward * (1 + 2 * shares))

    def _gathering(
        self, graph: ModelGraph, unit_groups: UnitGroups, after_activation: bool
    ) -> Gathering:
        sites = self._sites(graph, unit_groups, after_activation=False)
        shares = [graph.share(site.node).forward for site in sites]
        nodes = [graph.entering(site.module) for site in sites]
        return Gathering(sites, unit_groups.count, list(zip(nodes, shares, strict=True)))

    def _check_unit_groups(self, unit_groups: Sequence[UnitGroups], after_activation: bool) -> None:
        for module in (module for groups in unit_groups for module in groups.members):
            own_weight(module)
        super()._check_unit_groups(unit_groups, after_activation)

    def _scores(self, gathering: Gathering, evidence: Evidence) -> torch.Tensor:
        scores = []
        for site, (node, share) in zip(gathering.sites, gathering.inputs, strict=True):
            x, gradient = evidence[node][0], evidence[site.node][1]
            passes.forward(2 * len(x), share)
            scores.append(self._of_site(site, x, gradient))
        return gathering.summed(scores)

    def _of_site(self, site: Site, x: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Return (N, units), in chunks: every sample has as many gradients as there are weights."""
        module, weight = site.module, own_weight(site.module)

        def of_sample(x: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
            def output(weight: torch.Tensor) -> torch.Tensor:
                return functional_call(module, {"weight": weight}, (x.unsqueeze(0),))

            pull = vjp(output, weight)[1]
            return rows_of(module, pull(gradient.unsqueeze(0))[0])

        at_once = max(1, self.memory // (2 * weight.nbytes))
        rows, scores = rows_of(module, weight), []
        for pair in zip(x.split(at_once), gradient.split(at_once), strict=True):
            g = vmap(of_sample)(*pair)  # (samples, units, weights of each)
            scores.append(ask(self.formula, g.shape[:2], "(samples, units)", rows, g))
        return torch.cat(scores)


def own_weight(module: nn.Module) -> torch.Tensor:
    """Return the weight that a module holds; UserError if it has none or computes it."""
    weight = weight_of(module)
    if module._parameters.get("weight") is None:
        raise UserError(
            f"The weight of {type(module).__name__} is computed from others: its gradient is not "
            "that of a parameter. Remove the parametrization before scoring."
        )
    return weight
