"""Criteria on activations and gradients: one pass over the data for all layers and criteria."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from operator import eq, is_
from typing import ClassVar, TypeGuard

import torch

from pruning_lab.attributions.base import AttributionMetric, Progress, at_rest
from pruning_lab.attributions.estimation.reduction import Estimate, Reducer, finite
from pruning_lab.attributions.evidence.gathering import Evidence, Gathering, ask
from pruning_lab.attributions.observation.batches import Batch, Made, parts
from pruning_lab.attributions.observation.checks import check_apart, check_graded, check_statistics
from pruning_lab.attributions.unit_groups import UnitGroups
from pruning_lab.errors import UserError
from pruning_lab.partial_forward.cut import ModelGraph, check_rows, two_and_three
from pruning_lab.partial_forward.parts import gradients as led_back
from pruning_lab.profiling import passes
from pruning_lab.profiling.passes import Prediction
from pruning_lab.runtime import distributed
from pruning_lab.runtime.inputs import Inputs, length, select


class ActivationMetric(AttributionMetric):
    """A criterion on the activation at a site and on the loss's gradient there.

    One pass over the data scores all layers; parameter gradients are never computed.
    """

    evidence: ClassVar[str] = "activations and gradients"
    needs_gradient: ClassVar[bool] = True

    own_pass: ClassVar[bool] = False
    """True if the criterion needs passes of its own instead of the one that the others share."""

    more: ClassVar[tuple[int, ...]] = ()
    """Further dimensions of the formula's result after (N, units), for a custom reducer."""

    samples: int | None = None
    """Maximum number of samples read; None (all), except in criteria with ``own_pass``."""

    memory: int = 128 * 2**20
    """Approximate limit in bytes for the activations of a pass; larger batches are split."""

    @abstractmethod
    def formula(self, activation: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Return per-sample scores (N, units) from activation and gradient (N, units, positions).

        The gradient is that of each sample's own loss; without ``needs_gradient`` the activation is
        passed instead. A unit group is passed as one unit with the positions of all its units.
        """

    def _check_unit_groups(self, unit_groups: Sequence[UnitGroups], after_activation: bool) -> None:
        """Try every site on two samples, and the formula for the first unit groups."""
        check_statistics(self.model)
        graph = self._graph(unit_groups)
        gatherings = [self._gathering(graph, groups, after_activation) for groups in unit_groups]
        if length(self.batches.first(2)) > 1:
            self._check_apart(graph, Places(gatherings), self.batches.pair())
        for first in gatherings[:1]:
            with passes.checking():
                evidence = self._evidence(graph, Places([first]), *self.batches.pair())
            finite(self._scores(first, evidence))

    def _check_apart(self, graph: ModelGraph, places: "Places", pair: Batch) -> None:
        """Raise UserError if what is read of a sample depends on the others of its batch."""
        if self.needs_gradient:
            check_apart(self._output, pair, self._raw_losses)
        else:
            check_apart(lambda x: graph.record(x, places.nodes)[1], pair)

    def _estimate(
        self, unit_groups: Sequence[UnitGroups], after_activation: bool, progress: Progress
    ) -> list[Estimate]:
        return _one_pass([self], unit_groups, after_activation)[0]

    def _predict(self, unit_groups: Sequence[UnitGroups], after_activation: bool) -> Prediction:
        graph, samples = self._graph(unit_groups), self.batches.count(self.samples)
        places = Places([self._gathering(graph, g, after_activation) for g in unit_groups])
        share_back = graph.share_back(places.graded) if self.needs_gradient else 0.0
        return Prediction(samples, samples * share_back)

    def _gathering(
        self, graph: ModelGraph, unit_groups: UnitGroups, after_activation: bool
    ) -> Gathering:
        """Return the sites where the evidence of unit groups is read."""
        return Gathering(self._sites(graph, unit_groups, after_activation), unit_groups.count)

    def _scores(self, gathering: Gathering, evidence: Evidence) -> torch.Tensor:
        """Return per-sample scores, (N, groups)."""
        return gathering.side_by_side(evidence, self.formula, self.more)

    def _reducer(self) -> Reducer:
        """Return the reducer of the per-sample scores."""
        return Reducer(self.reduction)

    def _at_once(self, graph: ModelGraph, places: "Places") -> int:
        """Return the number of samples that fit into ``memory``, measured on the first one."""
        x, three = two_and_three(self.batches.example())
        with passes.checking():
            with torch.set_grad_enabled(self.needs_gradient), Made(self.model) as made:
                _, activations = graph.record(x, places.nodes)
            with torch.no_grad():
                check_rows(activations, graph.record(three, places.nodes)[1])
        both_ways = 2 if self.needs_gradient else 1
        return max(1, length(x) * self.memory // (both_ways * max(1, made.bytes)))

    def _evidence(self, graph: ModelGraph, places: "Places", x: Inputs, target: Inputs) -> Evidence:
        """Return activation and gradient at every node; the activation twice without gradients."""
        with torch.set_grad_enabled(self.needs_gradient):
            output, activations = graph.record(x, places.nodes)
            recorded = dict(zip(places.nodes, activations, strict=True))
            gradients = {}
            if self.needs_gradient:
                passes.backward(length(x), graph.share_back(places.graded))
                wanted = [recorded[node] for node in places.graded]
                loss = self._losses(output, target).sum()
                check_graded(loss)
                gradients = dict(zip(places.graded, led_back(loss, wanted), strict=True))
        return {node: (a.detach(), gradients.get(node, a.detach())) for node, a in recorded.items()}


class Places:
    """The nodes that one pass records, and those where it computes gradients."""

    def __init__(self, gatherings: Iterable[Gathering]) -> None:
        every = list(gatherings)
        self.graded = list(dict.fromkeys(site.node for place in every for site in place.sites))
        inputs = [node for place in every for node, _ in place.inputs]
        self.nodes = list(dict.fromkeys([*self.graded, *inputs]))


class MapMetric(ActivationMetric):
    """A criterion on whole activation maps: (N, units, height, width) of a convolution.

    A unit group's score is the sum of its units' scores.
    """

    def _scores(self, gathering: Gathering, evidence: Evidence) -> torch.Tensor:
        scores = []
        for site in gathering.sites:
            a, g = (finite(values).movedim(site.axis, 1) for values in evidence[site.node])
            scores.append(ask(self.formula, a.shape[:2], "(samples, units)", a, g))
        return gathering.summed(scores)


def shares_pass(metric: AttributionMetric) -> TypeGuard[ActivationMetric]:
    """Return True if this criterion can share its pass over the data with others."""
    return isinstance(metric, ActivationMetric) and not metric.own_pass


def run_together(
    metrics: Sequence[ActivationMetric],
    unit_groups: Sequence[UnitGroups],
    find_best_evaluation_module: bool = False,
) -> list[list[Estimate]]:
    """Return ``estimate``'s result for each metric, by one pass over the data for all of them.

    Raises UserError unless the metrics have the same model, data and loss function, and can share
    a pass (``shares_pass``).
    """
    first = metrics[0]
    for metric in metrics:
        if not shares_pass(metric):
            raise UserError(f"{type(metric).__name__} takes passes of its own: use estimate.")
    # a bound method, as a criterion may be, is a new object at each access
    for name, same in (("model", is_), ("data_generator", is_), ("criterion", eq)):
        if not all(same(getattr(metric, name), getattr(first, name)) for metric in metrics):
            raise UserError(f"Metrics that run together must have the same {name}.")
    anew = [metric._with({}) for metric in metrics]
    with at_rest(first.model):
        return _one_pass(anew, unit_groups, find_best_evaluation_module)


def _one_pass(
    metrics: Sequence[ActivationMetric], unit_groups: Sequence[UnitGroups], after_activation: bool
) -> list[list[Estimate]]:
    """Return, for each metric, the scores of each set of unit groups."""
    leading = next((metric for metric in metrics if metric.needs_gradient), metrics[0])
    check_statistics(leading.model)
    graph = leading._graph(unit_groups)
    gatherings = [
        [m._gathering(graph, groups, after_activation) for groups in unit_groups] for m in metrics
    ]
    every = Places(place for places in gatherings for place in places)
    checked = length(leading.batches.first(2)) > 1  # batches of one sample cannot mix samples
    if checked:
        leading._check_apart(graph, every, leading.batches.pair())
    reducers = [[metric._reducer() for _ in unit_groups] for metric in metrics]
    at_once = distributed.agreed(lambda: leading._at_once(graph, every))
    for batch in leading.batches.read(leading.samples):
        if not checked and length(batch) > 1:
            leading._check_apart(graph, every, select(batch, slice(2)))
            checked = True
        for part in parts(batch, at_once):
            evidence = leading._evidence(graph, every, part.inputs, part.target)
            for metric, places, totals in zip(metrics, gatherings, reducers, strict=True):
                for place, reducer in zip(places, totals, strict=True):
                    reducer.add(metric._scores(place, evidence), samples=part.samples)
    return [[reducer.estimate() for reducer in totals] for totals in reducers]
