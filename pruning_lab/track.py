"""One network pruned step by step by one criterion: score, cut, fine-tune, measure."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer
from torch.utils.data import Dataset

from pruning_lab import ranks
from pruning_lab.attributions import AttributionMetric
from pruning_lab.attributions.coupled import TOGETHER, group_scores
from pruning_lab.attributions.players import Players
from pruning_lab.attributions.scores import LayerEstimates, LayerScores
from pruning_lab.datasets import Splits
from pruning_lab.errors import UserError
from pruning_lab.ledger import Cost
from pruning_lab.network import Network
from pruning_lab.plan import Plan
from pruning_lab.random_streams import seed_all
from pruning_lab.schedules import Schedule, Step
from pruning_lab.training import (
    Epochs,
    Evaluation,
    Training,
    evaluate,
    fit,
    part,
    recalibrate,
    snapshot,
    with_statistics,
)

MAIN, UNTUNED, STALE, SCRATCH = "main", "untuned", "stale", "scratch"
"""The tracks of a run: pruned step by step as configured; the same without any fine-tuning; without
that and with BatchNorm's statistics as they were before the first cut; what was left in the end,
with new weights, trained as the baseline was."""

STAGES = ("cut", "before", "after")
"""When a step is measured: right after the cut; before fine-tuning, with new statistics of
BatchNorm; after fine-tuning. A stage that changes nothing has the numbers of the one before."""

Row = dict[str, Any]
"""Everything measured at one step."""

OF_THE_MACHINE = (
    "time", "latency_ms", "scoring_seconds", "recalibrate_seconds", "finetune_seconds",
    "scoring_peak_bytes",
)  # fmt: skip
"""What a row has of the machine at the moment: no two runs have the same."""

Scored = tuple[LayerEstimates, Cost]
"""The scores of layers or groups, and what they took."""

Score = Callable[["Track", tuple[str, ...]], Scored]
"""How layers of a track are scored."""


@dataclass(frozen=True)
class Task:
    """What all criteria are given alike.

    ``order`` seeds the order of the training data; ``recalibrate`` is from how many training
    samples BatchNorm's statistics are made anew after a cut, 0 for not at all. With ``undo_harm``
    fine-tuning that does not improve the validation accuracy is undone; between equal accuracies
    the validation loss decides. Without ``every_stage`` a step is measured at its end only, and
    nothing can be undone.
    """

    splits: Splits
    schedule: Schedule
    finetune: Training
    order: int
    recalibrate: int = 1000
    undo_harm: bool = True
    every_stage: bool = True

    def __post_init__(self) -> None:
        if self.undo_harm and not self.every_stage:
            raise UserError(
                "undo_harm=True compares the network before and after fine-tuning; give "
                "every_stage=True with it, or undo_harm=False."
            )

    def steps(self, network: Network) -> list[Step]:
        """The schedule's steps for the layers of a network that are scored."""
        groups = network.groups().values()
        return self.schedule.steps_for(
            [[layer for layer in group.players if layer in network.layers] for group in groups]
        )


@dataclass(frozen=True)
class Measured:
    """A network on the test and the validation split."""

    test: Evaluation
    val: Evaluation

    def numbers(self, stage: str) -> Row:
        """``test_accuracy_<stage>`` and so on."""
        numbers: Row = {}
        for split in ("test", "val"):
            found: Evaluation = getattr(self, split)
            numbers |= {f"{split}_accuracy_{stage}": found.accuracy}
            numbers |= {f"{split}_loss_{stage}": found.loss}
        numbers[f"test_worst_class_accuracy_{stage}"] = self.test.worst_class
        return numbers | {f"test_calibration_error_{stage}": self.test.calibration_error}

    def is_better_than(self, other: "Measured") -> bool:
        """Compare validation accuracies; losses where they are equal."""
        own, others = (
            (each.val.accuracy, -np.nan_to_num(each.val.loss, nan=np.inf)) for each in (self, other)
        )
        return bool(own > others)


Stages = dict[str, Measured]
"""Measurements of a step by stage; stages that changed nothing are left out."""


@dataclass(frozen=True)
class Done:
    """One step of a track: what went (nothing before the first), and what was measured.

    ``test`` has the test split's samples by stage. The network ``stands`` as after it, but for
    steps of an earlier try before the last of them.
    """

    plan: Plan
    row: Row
    test: Mapping[str, Evaluation]
    stands: bool = True


class Steps:
    """Where a track that was cut off goes on from; keeps nothing, for others to do."""

    def restore(self, network: Network, optimizer: Optimizer) -> list[Done]:
        """The steps that are done; network and optimizer are as after them."""
        return []

    def keep(self, done: Sequence[Done], network: Network, optimizer: Optimizer) -> None:
        """These steps are done."""

    def scores(self, number: int, score: Callable[[], Scored]) -> Scored:
        """The scores that lead to a step."""
        return score()

    def epochs(self, number: int) -> Epochs:
        """Where the fine-tuning of a step goes on from."""
        return Epochs()


@dataclass(frozen=True)
class Track:
    """A copy of a baseline on its way, under a name that tells it from others of its run."""

    name: str
    network: Network
    metric: AttributionMetric
    task: Task

    def run(
        self,
        steps: Sequence[Step],
        score: Score,
        first: Scored | None = None,
        scored: Callable[[int, LayerEstimates], None] = lambda *_: None,
        kept: Steps | None = None,
        whole: Measured | None = None,
    ) -> Iterator[Done]:
        """The network as it stands, and step by step; those that are ``kept`` are not done again.

        ``first`` are the baseline's scores and ``whole`` is what was measured of it, where they are
        known already. ``scored`` is told of a step's scores before anything is cut.
        """
        network, task, kept = self.network, self.task, kept or Steps()
        # one optimizer for all steps: its momentum is cut with the weights
        network.pruner.optimizer = optimizer = task.finetune.optimizer(network.model)
        done = kept.restore(network, optimizer)
        for number, each in enumerate(done):
            if number:  # whoever listens may not have heard, when it was cut off
                scored(number, self._scored(number, steps[number - 1], _lost, first, kept)[0])
            yield replace(each, stands=number == len(done) - 1)
        tuned_on = part(task.splits.train, task.finetune.share, seeded(task.order, 0))

        def finished(plan: Plan, stages: Stages, spent: Row) -> Done:
            done.append(done_of(network, plan, stages, spent))
            kept.keep(done, network, optimizer)
            return done[-1]

        if not done:
            yield finished({}, {"cut": whole or measure(network, task.splits)}, {})
        for number, step in enumerate(steps[len(done) - 1 :], len(done)):
            found, cost = self._scored(number, step, score, first, kept)
            scored(number, found)
            plan = self.plan({name: each.scores for name, each in found.items()}, step)
            network.pruner.prune_groups(plan)
            spent = {f"scoring_{key}": each for key, each in vars(cost).items()}
            label = f"step {number} of {len(steps)}"
            stages: Stages = {}
            self._measure(stages, "cut")
            spent |= self._recalibrate(stages, tuned_on, seeded(task.order, len(steps) + number))
            spent |= self._tune(
                stages, tuned_on, seeded(task.order, number), optimizer, label, kept.epochs(number)
            )
            stages = stages or {"after": measure(network, task.splits)}
            yield finished(plan, stages, spent)

    def _scored(
        self, number: int, step: Step, score: Score, first: Scored | None, kept: Steps
    ) -> Scored:
        """The scores that lead to a step, of what loses units at it."""
        layers = tuple(layer for layer in self.network.layers if layer in step.layers)
        own = partial(score, self, layers)
        found, cost = first if first and number == 1 else kept.scores(number, own)
        return {name: found[name] for name in self.players(layers)}, cost

    def _recalibrate(self, stages: Stages, data: Dataset, order: torch.Generator) -> Row:
        """Make BatchNorm's statistics anew, and measure that."""
        network, samples = self.network, self.task.recalibrate
        if not (samples and with_statistics(network.model)):
            return {"recalibrate_seconds": 0.0}
        started = time.perf_counter()
        recalibrate(network.model, data, samples, order)
        spent = time.perf_counter() - started
        self._measure(stages, "before")
        return {"recalibrate_seconds": spent}

    def _tune(
        self,
        stages: Stages,
        data: Dataset,
        order: torch.Generator,
        optimizer: Optimizer,
        label: str,
        kept: Epochs,
    ) -> Row:
        """Fine-tune the network, and measure that; undo it where it does not help and is to."""
        network, task = self.network, self.task
        if not task.finetune:
            return {"finetune_seconds": 0.0}
        undo, started = snapshot(network.model, optimizer), time.perf_counter()
        fit(network.model, optimizer, data, task.finetune, order, f"Fine-tuning, {label}", kept)
        spent = kept.seconds + time.perf_counter() - started
        after = measure(network, task.splits)
        harms = task.undo_harm and ranks.agreed(
            lambda: not after.is_better_than(list(stages.values())[-1])
        )
        if harms:
            undo()
        else:
            stages["after"] = after
        return {"finetune_seconds": spent, "finetune_kept": float(not harms)}

    def _measure(self, stages: Stages, stage: str) -> None:
        """Measure a stage that is not the last one, if it is wanted."""
        if self.task.every_stage:
            stages[stage] = measure(self.network, self.task.splits)

    def players(self, layers: Sequence[str]) -> dict[str, Players]:
        """What is scored for these layers: their groups, or each layer by itself."""
        return self.network.players(layers, self.task.schedule.coupled)

    def plan(self, scores: LayerScores, step: Step) -> Plan:
        """Which units go at a step, by the scores of layers or of groups."""
        schedule, groups = self.task.schedule, self.network.groups(step.layers)
        if schedule.coupled == TOGETHER:
            by_player = {name: scores[name] for name in groups}
        else:
            aggregate = "first" if self.metric.independent else schedule.coupled
            by_player = {k: group_scores(group, scores, aggregate) for k, group in groups.items()}
        return self.network.plan(by_player, step, schedule)


def controls(task: Task, network: Network, untuned: bool, stale: bool) -> dict[str, Task]:
    """The tasks of the control tracks that are wanted and differ from ``task``."""
    found = {}
    if untuned and task.finetune:  # its share is what recalibration sees
        found[UNTUNED] = replace(task, finetune=Training(epochs=0, share=task.finetune.share))
    if stale and task.recalibrate and with_statistics(network.model):
        found[STALE] = replace(task, finetune=Training(epochs=0), recalibrate=0)
    return found


def _lost(track: Track, layers: tuple[str, ...]) -> Scored:
    raise UserError(
        f"The scores of a finished step of the track '{track.name}' are missing beside it. Give "
        "force=true to run it anew."
    )


def measure(network: Network, splits: Splits) -> Measured:
    """The network as it stands."""
    return Measured(evaluate(network.model, splits.test), evaluate(network.model, splits.val))


def done_of(network: Network, plan: Plan, stages: Stages, spent: Row) -> Done:
    """A finished step: the cost of the network as it stands beside what was measured."""
    size = network.size()
    row: Row = dict(size) | {f"removed_{k}": 1 - v / network.original[k] for k, v in size.items()}
    measured = None
    for stage in STAGES:
        measured = stages.get(stage, measured)
        row |= measured.numbers(stage) if measured else {}
    row |= spent | {"latency_ms": network.latency_ms(), "time": time.time()}
    row |= {f"width/{layer}": width for layer, width in network.widths().items()}
    return Done(plan, row, {stage: each.test for stage, each in stages.items()})


def seeded(seed: int, stage: int) -> torch.Generator:
    """Random streams for one stage of training: they do not depend on what ran before."""
    own = seed_of(seed, stage)
    seed_all(own)  # Dropout and augmentation draw from the streams that everybody shares
    return torch.Generator().manual_seed(own)


def seed_of(seed: int, stage: int) -> int:
    """A seed of its own for each stage."""
    return int(np.random.SeedSequence([seed, stage]).generate_state(1)[0])
