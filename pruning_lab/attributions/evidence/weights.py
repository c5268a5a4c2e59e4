"""Criteria on the weights of a unit, alone or with their gradients, sample by sample."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import nn
from torch.func import functional_call, vjp, vmap

from pruning_lab.attributions.base import AttributionMetric, Progress, Site
from pruning_lab.attributions.estimation.reduction import Estimate
from pruning_lab.attributions.evidence.activations import ActivationMetric
from pruning_lab.attributions.evidence.gathering import Evidence, Gathering, ask, sum_of_members
from pruning_lab.attributions.unit_groups import UnitGroups
from pruning_lab.errors import UserError
from pruning_lab.graph.kinds import LAYERS, TransposedConvolution
from pruning_lab.partial_forward.cut import ModelGraph
from pruning_lab.profiling import passes
from pruning_lab.profiling.passes import Prediction


class WeightMetric(AttributionMetric):
    """A criterion on the weights of a layer's units, without biases.

    Uses no data: the scores are (units,) whatever the reduction. A unit group's score is the sum of
    its units' scores. Raises UserError for a module without weights.
    """

    evidence: ClassVar[str] = "weights"

    @abstractmethod
    def formula(self, weights: torch.Tensor) -> torch.Tensor:
        """Return scores (units,) of a layer from its float64 weights (units, weights of each)."""

    def _estimate(
        self, unit_groups: Sequence[UnitGroups], after_activation: bool, progress: Progress
    ) -> list[Estimate]:
        read = self._reader()
        return [Estimate(self._scores(groups, read).numpy()) for groups in unit_groups]

    def _check_unit_groups(self, unit_groups: Sequence[UnitGroups], after_activation: bool) -> None:
        read = self._reader()
        for module in (module for groups in unit_groups for module in groups.members):
            read(module)
        for groups in unit_groups[:1]:
            self._scores(groups, read)

    def _predict(self, unit_groups: Sequence[UnitGroups], after_activation: bool) -> Prediction:
        return Prediction()

    def _reader(self) -> Callable[[nn.Module], torch.Tensor]:
        """Return a function: module -> the weights of its units, (units, weights of each)."""
        return lambda module: rows_of(module, weight_of(module))

    def _scores(
        self, unit_groups: UnitGroups, read: Callable[[nn.Module], torch.Tensor]
    ) -> torch.Tensor:
        scores = []
        for weights in map(read, unit_groups.members):
            of_units = ask(self.formula, weights.shape[:1], "(units,)", weights.double())
            if not of_units.isfinite().all():
                raise UserError(
                    f"{type(self).__name__}: scores are not finite. Look at the model's weights."
                )
            scores.append(of_units.cpu())
        return sum_of_members(scores, unit_groups.members.values(), unit_groups.count)


def weight_of(module: nn.Module) -> torch.Tensor:
    """Return the weight of a module; UserError if it has none, or if its layout is unknown."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor):
        raise UserError(
            f"{type(module).__name__} has no weights, so its units have no score by them. "
            "Score a Linear, a convolution or a BatchNorm."
        )
    if weight.ndim > 1 and not isinstance(module, LAYERS):
        raise UserError(
            f"Cannot tell which dimension of {type(module).__name__}'s weight "
            f"{tuple(weight.shape)} holds the units. Score a Linear, a convolution or a BatchNorm, "
            "or choose a criterion on activations."
        )
    return weight.detach()


def rows_of(module: nn.Module, weight: torch.Tensor) -> torch.Tensor:
    """Reshape a module's weight, or a tensor of its shape, to (units, weights of each)."""
    if isinstance(module, TransposedConvolution):  # (inputs, units / groups, ...)
        weight = weight.unflatten(0, (module.groups, -1)).transpose(1, 2).flatten(0, 1)
    return weight.flatten(1) if weight.ndim > 1 else weight.unsqueeze(1)


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
