"""Criteria on the gradients of a unit's weights, sample by sample."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import nn
from torch.func import functional_call, vjp, vmap

from pruning_lab import ledger
from pruning_lab.attributions.activations import ActivationMetric
from pruning_lab.attributions.base import Site
from pruning_lab.attributions.formulas import ask
from pruning_lab.attributions.gathering import Evidence, Gathering
from pruning_lab.attributions.players import Players
from pruning_lab.attributions.weights import rows_of, weight_of
from pruning_lab.errors import UserError
from pruning_lab.ledger import Prediction


class WeightGradientMetric(ActivationMetric):
    """A criterion on weights and on the gradient that each sample's own loss has there.

    It comes of what goes into the layer and of the gradient at the layer's own output. Of units
    that only go together the score is the sum of theirs. Raises UserError for a layer without
    weights, or with computed ones.
    """

    evidence: ClassVar[str] = "weights and their gradients"

    @abstractmethod
    def formula(self, weights: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Per-sample scores (N, units) from weights (units, K) and gradients (N, units, K)."""

    def _predict(self, players: Sequence[Players], behind: bool) -> Prediction:
        """Beside the pass for all, each layer runs again and takes as much for its weights."""
        found, graph = super()._predict(players, behind), self._graph(players)
        shares = sum(sum(self._gathering(graph, each, behind).shares) for each in players)
        return replace(found, forward=found.forward * (1 + 2 * shares))

    def _gathering(self, graph: Any, players: Players, behind: bool) -> "_WithInputs":
        return _WithInputs(graph, self._sites(graph, players, behind=False), players.count)

    def _check_players(self, players: Sequence[Players], behind: bool) -> None:
        for module in (module for each in players for module in each.members):
            own_weight(module)
        super()._check_players(players, behind)

    def _scores(self, gathering: Gathering, evidence: Evidence) -> torch.Tensor:
        assert isinstance(gathering, _WithInputs)
        places = zip(gathering.sites, gathering.inputs, gathering.shares, strict=True)
        scores = []
        for site, given, share in places:
            x, gradient = evidence[given][0], evidence[site.node][1]
            ledger.forward(2 * len(x), share)
            scores.append(self._of_site(site, x, gradient))
        return gathering.summed(scores)

    def _of_site(self, site: Site, x: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """(N, units), a few samples at a time: each has as many gradients as there are weights."""
        weight = own_weight(site.module)
        at_once = max(1, self.memory // (2 * weight.nbytes))
        rows = rows_of(site.module, weight)
        pairs = zip(x.split(at_once), gradient.split(at_once), strict=True)
        gradients = (gradients_of_weight(site.module, *some) for some in pairs)
        return torch.cat(
            [
                ask(self.formula, each.shape[:2], "(samples, units)", rows, each)
                for each in gradients
            ]
        )


class _WithInputs(Gathering):
    """Also what goes into the modules of the sites."""

    def __init__(self, graph: Any, sites: list[Site], count: int | None) -> None:
        super().__init__(sites, count)
        self.inputs = [graph.entering(site.module) for site in sites]
        self.shares = [graph.share(site.node).forward for site in sites]

    @property
    def nodes(self) -> list[Any]:
        return [*super().nodes, *self.inputs]


def own_weight(module: nn.Module) -> torch.Tensor:
    """The weight that a module holds; UserError where it has none or computes it."""
    weight = weight_of(module)
    if module._parameters.get("weight") is None:
        raise UserError(
            f"The weight of {type(module).__name__} is computed from others: its gradient is not "
            "that of a parameter. Remove the parametrization before scoring."
        )
    return weight


def gradients_of_weight(module: nn.Module, x: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Each sample's gradient with respect to ``module``'s weight, (N, units, weights of each).

    ``x`` is what goes into the module, ``gradient`` that at its output, a row for each sample.
    """
    weight = own_weight(module)

    def of_sample(x: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        def output(weight: torch.Tensor) -> torch.Tensor:
            return functional_call(module, {"weight": weight}, (x.unsqueeze(0),))

        pull = vjp(output, weight)[1]
        return rows_of(module, pull(gradient.unsqueeze(0))[0])

    return vmap(of_sample)(x.detach(), gradient)
