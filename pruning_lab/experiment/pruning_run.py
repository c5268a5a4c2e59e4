"""One network pruned step by step by one criterion: score, choose, cut, recover, record."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch.optim import Optimizer

from pruning_lab.attributions import AttributionMetric
from pruning_lab.attributions.estimation.scores import LayerEstimates, LayerScores
from pruning_lab.attributions.unit_groups import UnitGroups
from pruning_lab.errors import UserError
from pruning_lab.experiment.conditions import Conditions, Measured, Stages
from pruning_lab.experiment.network import Network
from pruning_lab.experiment.recovery import Recovery
from pruning_lab.profiling.flops import latency_ms
from pruning_lab.profiling.passes import ScoringCost
from pruning_lab.pruning.plan import Plan, group_scores
from pruning_lab.pruning.schedules import TOGETHER, Step
from pruning_lab.records.step import STAGES, StepRecord
from pruning_lab.tasks.task import Samples
from pruning_lab.training.fit import NullEpochStore

Scored = tuple[LayerEstimates, ScoringCost]
"""The scores of layers or groups of layers, and what they took."""

Score = Callable[["PruningRun", tuple[str, ...]], Scored]
"""A function that scores layers of a run's network."""


@dataclass(frozen=True)
class StepResult:
    """One step of a run: what was removed (nothing at the first), and what was measured.

    ``test`` has the results of the test split's samples by stage. ``is_current``: whether the
    network is in the state after this step; False for earlier, restored steps.
    """

    plan: Plan
    record: StepRecord
    test: Mapping[str, Samples]
    is_current: bool = True


class NullStepStore:
    """Keeps nothing: every step of a run is computed. Subclass it to keep finished steps."""

    def restore(self, network: Network, optimizer: Optimizer) -> list[StepResult]:
        """Return the finished steps, with network and optimizer in the state after them."""
        return []

    def keep(self, results: Sequence[StepResult], network: Network, optimizer: Optimizer) -> None:
        """Keep all finished steps."""

    def scores(self, number: int, score: Callable[[], Scored]) -> Scored:
        """Return the scores that lead to a step; ``score`` computes them where they are missing."""
        return score()

    def epochs(self, number: int) -> NullEpochStore:
        """Return the store for the epochs of a step's fine-tuning."""
        return NullEpochStore()


class NullRecorder:
    """Records nothing. Subclass it to receive a run's scores and steps."""

    def scores(self, run: "PruningRun", number: int, estimates: LayerEstimates) -> None:
        """The scores that lead to a step, before anything is cut."""

    def step(self, run: "PruningRun", number: int, result: StepResult) -> None:
        """A finished step; number 0 is the unpruned network."""


@dataclass(frozen=True)
class PruningRun:
    """A network that is pruned by one criterion, under a name that tells its track."""

    name: str
    network: Network
    metric: AttributionMetric
    conditions: Conditions

    def unit_groups(self, layers: Sequence[str]) -> dict[str, UnitGroups]:
        """Return what is scored: the unit groups of coupled layers, or each layer alone."""
        return self.network.unit_groups(layers, self.conditions.schedule.coupled)

    def choose(self, scores: LayerScores, step: Step) -> Plan:
        """Choose the units to remove at a step, by the scores of layers or of coupled layers."""
        schedule, groups = self.conditions.schedule, self.network.groups(step.layers)
        if schedule.coupled == TOGETHER:
            by_player = {name: scores[name] for name in groups}
        else:
            aggregate = "first" if self.metric.independent else schedule.coupled
            by_player = {k: group_scores(group, scores, aggregate) for k, group in groups.items()}
        return self.network.plan(by_player, step, schedule)


def prune(
    run: PruningRun,
    score: Score,
    first: Scored | None = None,
    store: NullStepStore | None = None,
    recorder: NullRecorder | None = None,
    whole: Measured | None = None,
) -> list[StepResult]:
    """Prune a run's network step by step; finished steps in the store are not computed again.

    Args:
        run: network, not pruned yet, criterion and conditions.
        score: scores layers of the network in its present state.
        first: the scores of the unpruned network, if they are known already.
        store: keeps finished steps; nothing by default.
        recorder: receives scores and steps; nobody by default.
        whole: the measurements of the unpruned network, if they are known already.

    Returns the results, the unpruned network's first.
    """
    network, conditions = run.network, run.conditions
    steps = conditions.steps(network)
    store, recorder = store or NullStepStore(), recorder or NullRecorder()
    if first:  # of these layers; named before restored cuts rename them
        names = run.unit_groups(_layers(run, steps[0]))
        first = {name: first[0][name] for name in names}, first[1]
    # one optimizer for all steps: its momentum is cut with the weights
    network.pruner.optimizer = optimizer = conditions.finetune.optimizer(network.model)
    results = store.restore(network, optimizer)
    for number, result in enumerate(results):  # the recorder may have missed some of them
        if number:
            scores, _ = _scores(run, number, steps[number - 1], _lost, first, store)
            recorder.scores(run, number, scores)
        recorder.step(run, number, replace(result, is_current=number == len(results) - 1))
    recovery = Recovery(network, conditions, optimizer)
    if not results:
        stages = {"cut": whole or conditions.measure(network)}
        results.append(result_of(network, {}, stages))
        store.keep(results, network, optimizer)
        recorder.step(run, 0, results[0])
    for number, step in enumerate(steps[len(results) - 1 :], len(results)):
        scores, cost = _scores(run, number, step, score, first, store)
        recorder.scores(run, number, scores)
        plan = run.choose({name: each.scores for name, each in scores.items()}, step)
        network.pruner.prune_groups(plan)
        stages, spent = recovery.after_cut(number, len(steps), store.epochs(number))
        results.append(result_of(network, plan, stages, scoring=cost, **spent))
        store.keep(results, network, optimizer)
        recorder.step(run, number, results[-1])
    return results


def _scores(
    run: PruningRun, number: int, step: Step, score: Score, first: Scored | None,
    store: NullStepStore,
) -> Scored:  # fmt: skip
    """Return the scores that lead to a step, of what loses units there."""
    if first and number == 1:
        return first
    return store.scores(number, partial(score, run, _layers(run, step)))


def _layers(run: PruningRun, step: Step) -> tuple[str, ...]:
    return tuple(layer for layer in run.network.layers if layer in step.layers)


def _lost(run: PruningRun, layers: tuple[str, ...]) -> Scored:
    raise UserError(
        f"The scores of a finished step of the track '{run.name}' are missing beside it. Give "
        "force=true to run it again."
    )


def result_of(network: Network, plan: Plan, stages: Stages, **spent: object) -> StepResult:
    """Return the result of the step that led to the network's present state.

    ``plan`` is what it removed, ``stages`` what was measured, ``spent`` the optional fields of the
    record.
    """
    measured, last = {}, None
    for stage in STAGES:
        last = stages.get(stage, last)
        measured[stage] = last.measurements() if last else []
    record = StepRecord(
        network.size(), network.original, measured, network.widths(),
        latency_ms(network.model, network.input_size), time.time(), **spent,  # type: ignore[arg-type]
    )  # fmt: skip
    return StepResult(plan, record, {stage: each.test.samples for stage, each in stages.items()})
