"""Criteria on activations and gradients: one pass over the data for all layers and criteria."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch

from pruning_lab import ledger, ranks
from pruning_lab.attributions.base import AttributionMetric, Progress, Site, at_rest, by_unit
from pruning_lab.attributions.batches import parts
from pruning_lab.attributions.checks import check_samples_apart
from pruning_lab.attributions.memory import Made
from pruning_lab.attributions.players import Players, alike
from pruning_lab.attributions.reduction import Estimate, Reducer, estimate
from pruning_lab.errors import UserError
from pruning_lab.graph.cut import check_rows, two_and_three
from pruning_lab.ledger import Prediction

Evidence = dict[Any, tuple[torch.Tensor, torch.Tensor]]
"""At every node the activation and the gradient of each sample's own loss."""


class ActivationMetric(AttributionMetric):
    """A criterion on the activation at a site, and on the loss's gradient there.

    One pass over the data scores all layers; parameter gradients are never computed.
    """

    needs_gradient: ClassVar[bool] = True

    memory: int = 128 * 2**20
    """About how many bytes the activations of a pass may take; larger batches go in parts."""

    @abstractmethod
    def formula(self, activation: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Per-sample scores (N, units) from activation and gradient, each (N, units, positions).

        The gradient is that of each sample's own loss; without ``needs_gradient`` it is not
        computed and the activation stands in its place.
        """

    def _check_players(self, players: Sequence[Players], behind: bool) -> None:
        check_samples_apart(self.model)

    def _estimate(
        self, players: Sequence[Players], behind: bool, progress: Progress
    ) -> list[Estimate]:
        return _one_pass([self], players, behind)[0]

    def _predict(self, players: Sequence[Players], behind: bool) -> Prediction:
        graph, samples = self._graph(), self.batches.count()
        nodes = [site.node for each in players for site in self._sites(graph, each, behind)]
        return Prediction(samples, samples * self._share_back(graph, nodes))

    def _share_back(self, graph: Any, nodes: list[Any]) -> float:
        """Which share of a whole backward pass brings the gradients."""
        return graph.share_back(nodes) if self.needs_gradient else 0.0

    def _at_once(self, graph: Any, nodes: list[Any]) -> int:
        """How many samples fit into ``memory``, by what one of them takes."""
        x, more = two_and_three(self.batches.example())
        with ledger.checking():
            with torch.set_grad_enabled(self.needs_gradient), Made(self.model) as made:
                _, activations = graph.record(x, nodes)
            with torch.no_grad():
                check_rows(activations, graph.record(more, nodes)[1])
        both_ways = 2 if self.needs_gradient else 1
        return max(1, len(x) * self.memory // (both_ways * max(1, made.bytes)))

    def _evidence(self, graph: Any, nodes: list[Any], x: torch.Tensor, target: Any) -> Evidence:
        """Activation and gradient at every node."""
        with torch.set_grad_enabled(self.needs_gradient):
            output, activations = graph.record(x, nodes)
            gradients = activations
            if self.needs_gradient:
                loss = self._losses(output, target).sum()
                gradients = torch.autograd.grad(
                    loss, activations, allow_unused=True, materialize_grads=True
                )
        pairs = zip(activations, gradients, strict=True)
        return {node: (a.detach(), g) for node, (a, g) in zip(nodes, pairs, strict=True)}


def run_together(
    metrics: Sequence[ActivationMetric],
    players: Sequence[Players],
    find_best_evaluation_module: bool = False,
) -> list[list[Estimate]]:
    """What ``estimate`` gives for each of the metrics, by one pass over the data for all.

    Raises UserError unless the metrics have the same model, data and loss.
    """
    first = metrics[0]
    for name in ("model", "data_generator", "criterion"):
        if any(getattr(other, name) is not getattr(first, name) for other in metrics):
            raise UserError(f"Metrics that run together must have the same {name}.")
    with at_rest(first.model):
        return _one_pass(metrics, players, find_best_evaluation_module)


def _one_pass(
    metrics: Sequence[ActivationMetric], players: Sequence[Players], behind: bool
) -> list[list[Estimate]]:
    """Metric by metric the scores of each set of players."""
    leading = next((metric for metric in metrics if metric.needs_gradient), metrics[0])
    check_samples_apart(leading.model)
    graph = leading._graph()
    gatherings = [_Gathering(leading._sites(graph, each, behind), each.count) for each in players]
    nodes = list(dict.fromkeys(site.node for each in gatherings for site in each.sites))
    reducers = [[Reducer(metric.reduction) for _ in players] for metric in metrics]
    at_once = ranks.agreed(lambda: leading._at_once(graph, nodes))
    back = leading._share_back(graph, nodes)
    for batch in leading.batches.read():
        for part in parts(batch, at_once):
            evidence = leading._evidence(graph, nodes, part.x, part.target)
            ledger.backward(len(part.x), back)
            for place, gathering in enumerate(gatherings):
                for metric, own in zip(metrics, reducers, strict=True):
                    scores = gathering.scores(evidence, metric.formula)
                    own[place].add(scores, samples=part.samples)
    return [[estimate([reducer]) for reducer in own] for own in reducers]


class _Gathering:
    """The evidence of players: that of all their units side by side, as positions of one."""

    def __init__(self, sites: Sequence[Site], count: int | None) -> None:
        self.sites, self._count = sites, count
        rows = [site.row for site in sites if site.row is not None]
        self._alike = [] if count is None else alike(rows, count)

    def scores(self, evidence: Evidence, formula: Callable[..., torch.Tensor]) -> torch.Tensor:
        """(samples, players)"""
        pairs = [
            tuple(by_unit(each, site.axis, site.module) for each in evidence[site.node])
            for site in self.sites
        ]
        if self._count is None:
            return formula(*pairs[0])
        parts = [
            formula(*(_side_by_side(each, players.units) for each in zip(*pairs, strict=True)))
            for players in self._alike
        ]
        numbers = torch.cat([players.players for players in self._alike])
        return torch.cat(parts, 1)[:, numbers.argsort().to(parts[0].device)]


def _side_by_side(values: Sequence[torch.Tensor], units: Sequence[torch.Tensor]) -> torch.Tensor:
    """Values (N, units, positions) at several places as (N, players, all their positions)."""
    own = [
        each[:, which.to(each.device)].flatten(2) for each, which in zip(values, units, strict=True)
    ]
    return torch.cat(own, 2)
