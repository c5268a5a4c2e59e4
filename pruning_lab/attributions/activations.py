"""Criteria on activations and gradients: one pass over the data for all layers and criteria."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, TypeGuard

import torch

from pruning_lab import ledger, ranks
from pruning_lab.attributions.apart import check_apart
from pruning_lab.attributions.base import AttributionMetric, Progress, at_rest
from pruning_lab.attributions.batches import Batch, parts
from pruning_lab.attributions.checks import check_graded, check_samples_apart
from pruning_lab.attributions.formulas import ask
from pruning_lab.attributions.gathering import Evidence, Gathering
from pruning_lab.attributions.memory import Made
from pruning_lab.attributions.players import Players
from pruning_lab.attributions.reduction import Estimate, Reducer, finite
from pruning_lab.errors import UserError
from pruning_lab.graph.cut import check_rows, two_and_three
from pruning_lab.graph.parts import gradients as led_back
from pruning_lab.ledger import Prediction


class ActivationMetric(AttributionMetric):
    """A criterion on the activation at a site, and on the loss's gradient there.

    One pass over the data scores all layers; parameter gradients are never computed.
    """

    evidence: ClassVar[str] = "activations and gradients"
    needs_gradient: ClassVar[bool] = True

    own_pass: ClassVar[bool] = False
    """Its evidence is not that of one pass over the data as they are, which serves all others."""

    more: ClassVar[tuple[int, ...]] = ()
    """Further dimensions of the formula's result after (N, units), for a reducer of its own."""

    samples: int | None = None
    """How many samples are read: all, but for criteria with passes of their own."""

    memory: int = 128 * 2**20
    """About how many bytes the activations of a pass may take; larger batches go in parts."""

    @abstractmethod
    def formula(self, activation: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Per-sample scores (N, units) from activation and gradient, each (N, units, positions).

        The gradient is that of each sample's own loss; without ``needs_gradient`` it is not
        computed and the activation stands in its place. Units that only go together come as one
        that has all their positions.
        """

    def _check_players(self, players: Sequence[Players], behind: bool) -> None:
        """Rehearse on two samples: every site, and the formula for the first players."""
        check_samples_apart(self.model)
        graph = self._graph(players)
        gatherings = [self._gathering(graph, each, behind) for each in players]
        if len(self.batches.first(2)) > 1:
            self._check_apart(graph, Places(gatherings), self.batches.pair())
        for first in gatherings[:1]:
            with ledger.checking():
                evidence = self._evidence(graph, Places([first]), *self.batches.pair())
            finite(self._scores(first, evidence))

    def _check_apart(self, graph: Any, places: "Places", pair: Batch) -> None:
        """UserError where what is read of a sample depends on the others of its batch."""
        if self.needs_gradient:
            check_apart(self._output, pair, self._raw_losses)
        else:
            check_apart(lambda x: graph.record(x, places.nodes)[1], pair)

    def _estimate(
        self, players: Sequence[Players], behind: bool, progress: Progress
    ) -> list[Estimate]:
        return _one_pass([self], players, behind)[0]

    def _predict(self, players: Sequence[Players], behind: bool) -> Prediction:
        graph, samples = self._graph(players), self.batches.count(self.samples)
        places = Places([self._gathering(graph, each, behind) for each in players])
        return Prediction(samples, samples * self._share_back(graph, places))

    def _gathering(self, graph: Any, players: Players, behind: bool) -> Gathering:
        """Where the evidence of the players is read."""
        return Gathering(self._sites(graph, players, behind), players.count)

    def _scores(self, gathering: Gathering, evidence: Evidence) -> torch.Tensor:
        """Per-sample scores, (N, players)."""
        return gathering.side_by_side(evidence, self.formula, self.more)

    def _reducer(self) -> Reducer:
        """What makes one score of the per-sample scores."""
        return Reducer(self.reduction)

    def _share_back(self, graph: Any, places: "Places") -> float:
        """Which share of a whole backward pass brings the gradients."""
        return graph.share_back(places.graded) if self.needs_gradient else 0.0

    def _at_once(self, graph: Any, places: "Places") -> int:
        """How many samples fit into ``memory``, by what one of them takes."""
        x, more = two_and_three(self.batches.example())
        with ledger.checking():
            with torch.set_grad_enabled(self.needs_gradient), Made(self.model) as made:
                _, activations = graph.record(x, places.nodes)
            with torch.no_grad():
                check_rows(activations, graph.record(more, places.nodes)[1])
        both_ways = 2 if self.needs_gradient else 1
        return max(1, len(x) * self.memory // (both_ways * max(1, made.bytes)))

    def _evidence(
        self, graph: Any, places: "Places", x: torch.Tensor, target: torch.Tensor
    ) -> Evidence:
        """Activation and gradient at every node; where there is none, the activation again."""
        with torch.set_grad_enabled(self.needs_gradient):
            output, activations = graph.record(x, places.nodes)
            found = dict(zip(places.nodes, activations, strict=True))
            gradients = {}
            if self.needs_gradient:
                ledger.backward(len(x), self._share_back(graph, places))
                wanted = [found[node] for node in places.graded]
                loss = self._losses(output, target).sum()
                check_graded(loss)
                gradients = dict(zip(places.graded, led_back(loss, wanted), strict=True))
        return {node: (a.detach(), gradients.get(node, a.detach())) for node, a in found.items()}


class Places:
    """All that one pass records."""

    def __init__(self, gatherings: Iterable[Gathering]) -> None:
        every = list(gatherings)
        self.nodes = list(dict.fromkeys(node for each in every for node in each.nodes))
        self.graded = list(dict.fromkeys(node for each in every for node in each.graded))


class MapMetric(ActivationMetric):
    """A criterion on every unit's map as it lies: (N, units, height, width) of a convolution.

    Of units that only go together the score is the sum of theirs.
    """

    def _scores(self, gathering: Gathering, evidence: Evidence) -> torch.Tensor:
        scores = []
        for site in gathering.sites:
            a, g = (finite(each).movedim(site.axis, 1) for each in evidence[site.node])
            scores.append(ask(self.formula, a.shape[:2], "(samples, units)", a, g))
        return gathering.summed(scores)


def shares_pass(metric: AttributionMetric) -> TypeGuard[ActivationMetric]:
    """Whether one pass may serve this criterion and others."""
    return isinstance(metric, ActivationMetric) and not metric.own_pass


def run_together(
    metrics: Sequence[ActivationMetric],
    players: Sequence[Players],
    find_best_evaluation_module: bool = False,
) -> list[list[Estimate]]:
    """What ``estimate`` gives for each of the metrics, by one pass over the data for all.

    Raises UserError unless the metrics have the same model, data and loss, and may share a pass.
    """
    first = metrics[0]
    for metric in metrics:
        if not shares_pass(metric):
            raise UserError(f"{type(metric).__name__} takes passes of its own: use estimate.")
    for name in ("model", "data_generator", "criterion"):
        if any(getattr(other, name) is not getattr(first, name) for other in metrics):
            raise UserError(f"Metrics that run together must have the same {name}.")
    with at_rest(first.model):
        return _one_pass(
            [metric._with({}) for metric in metrics], players, find_best_evaluation_module
        )


def _one_pass(
    metrics: Sequence[ActivationMetric], players: Sequence[Players], behind: bool
) -> list[list[Estimate]]:
    """Metric by metric the scores of each set of players."""
    leading = next((metric for metric in metrics if metric.needs_gradient), metrics[0])
    check_samples_apart(leading.model)
    graph = leading._graph(players)
    gatherings = [[m._gathering(graph, each, behind) for each in players] for m in metrics]
    every = Places(place for own in gatherings for place in own)
    checked = len(leading.batches.first(2)) > 1  # samples that come one by one cannot be mixed
    if checked:
        leading._check_apart(graph, every, leading.batches.pair())
    reducers = [[metric._reducer() for _ in players] for metric in metrics]
    at_once = ranks.agreed(lambda: leading._at_once(graph, every))
    for batch in leading.batches.read(leading.samples):
        if not checked and len(batch[0]) > 1:
            leading._check_apart(graph, every, (batch[0][:2], batch[1][:2]))
            checked = True
        for part in parts(batch, at_once):
            evidence = leading._evidence(graph, every, part.x, part.target)
            for metric, places, own in zip(metrics, gatherings, reducers, strict=True):
                for place, reducer in zip(places, own, strict=True):
                    reducer.add(metric._scores(place, evidence), samples=part.samples)
    return [[reducer.estimate() for reducer in own] for own in reducers]
