"""Criteria on the gradients of a unit's weights, sample by sample."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import nn
from torch.func import functional_call, vjp, vmap

from pruning_lab.attributions.base import Site
from pruning_lab.attributions.evidence.activations import ActivationMetric
from pruning_lab.attributions.evidence.formulas import ask
from pruning_lab.attributions.evidence.gathering import Evidence, Gathering
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
        shares = sum(
            sum(self._gathering(graph, groups, after_activation).shares) for groups in unit_groups
        )
        return replace(shared, forward=shared.forward * (1 + 2 * shares))

    def _gathering(
        self, graph: ModelGraph, unit_groups: UnitGroups, after_activation: bool
    ) -> "_WithInputs":
        return _WithInputs(
            graph, self._sites(graph, unit_groups, after_activation=False), unit_groups.count
        )

    def _check_unit_groups(self, unit_groups: Sequence[UnitGroups], after_activation: bool) -> None:
        for module in (module for groups in unit_groups for module in groups.members):
            own_weight(module)
        super()._check_unit_groups(unit_groups, after_activation)

    def _scores(self, gathering: Gathering, evidence: Evidence) -> torch.Tensor:
        assert isinstance(gathering, _WithInputs)
        places = zip(gathering.sites, gathering.inputs, gathering.shares, strict=True)
        scores = []
        for site, given, share in places:
            x, gradient = evidence[given][0], evidence[site.node][1]
            passes.forward(2 * len(x), share)
            scores.append(self._of_site(site, x, gradient))
        return gathering.summed(scores)

    def _of_site(self, site: Site, x: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Return (N, units), in chunks: every sample has as many gradients as there are weights."""
        weight = own_weight(site.module)
        at_once = max(1, self.memory // (2 * weight.nbytes))
        rows = rows_of(site.module, weight)
        pairs = zip(x.split(at_once), gradient.split(at_once), strict=True)
        gradients = (gradients_of_weight(site.module, *pair) for pair in pairs)
        return torch.cat(
            [ask(self.formula, g.shape[:2], "(samples, units)", rows, g) for g in gradients]
        )


class _WithInputs(Gathering):
    """A gathering that also records the inputs of the sites' modules."""

    def __init__(self, graph: ModelGraph, sites: list[Site], count: int | None) -> None:
        super().__init__(sites, count)
        self.inputs = [graph.entering(site.module) for site in sites]
        self.shares = [graph.share(site.node).forward for site in sites]

    @property
    def nodes(self) -> list[Any]:
        return [*super().nodes, *self.inputs]


def own_weight(module: nn.Module) -> torch.Tensor:
    """Return the weight that a module holds; UserError if it has none or computes it."""
    weight = weight_of(module)
    if module._parameters.get("weight") is None:
        raise UserError(
            f"The weight of {type(module).__name__} is computed from others: its gradient is not "
            "that of a parameter. Remove the parametrization before scoring."
        )
    return weight


def gradients_of_weight(module: nn.Module, x: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Return the gradients with respect to ``module``'s weight, (N, units, weights of each).

    ``x`` is the module's input, ``gradient`` that at its output, a row for each sample.
    """
    weight = own_weight(module)

    def of_sample(x: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        def output(weight: torch.Tensor) -> torch.Tensor:
            return functional_call(module, {"weight": weight}, (x.unsqueeze(0),))

        pull = vjp(output, weight)[1]
        return rows_of(module, pull(gradient.unsqueeze(0))[0])

    return vmap(of_sample)(x.detach(), gradient)
