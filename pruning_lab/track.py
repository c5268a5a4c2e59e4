"""One network pruned step by step by one criterion: score, cut, fine-tune, measure."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer
from torch.utils.data import Dataset

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
from pruning_lab.training import Epochs, Training, evaluate, fit, part, recalibrate

MAIN, UNTUNED, SCRATCH = "main", "untuned", "scratch"
"""The tracks of a run: pruned step by step as configured; the same without any fine-tuning; what
was left in the end, with new weights, trained as the baseline was."""

Row = dict[str, Any]
"""Everything measured at one step."""

OF_THE_MACHINE = (
    "time", "latency_ms", "scoring_seconds", "finetune_seconds", "scoring_peak_bytes",
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
    samples BatchNorm's statistics are made anew after a cut, 0 for not at all.
    """

    splits: Splits
    schedule: Schedule
    finetune: Training
    order: int
    recalibrate: int = 0

    def steps(self, network: Network) -> list[Step]:
        """The schedule's steps for the layers of a network that are scored."""
        groups = network.groups().values()
        return self.schedule.steps_for(
            [[layer for layer in group.players if layer in network.layers] for group in groups]
        )


@dataclass(frozen=True)
class Done:
    """One step of a track: what went (nothing before the first), and what was measured.

    The network ``stands`` as after it, but for steps of an earlier try before the last of them.
    """

    plan: Plan
    row: Row
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
    ) -> Iterator[Done]:
        """The network as it stands, and step by step; those that are ``kept`` are not done again.

        ``first`` are the baseline's scores, where they are known already. ``scored`` is told of a
        step's scores before anything is cut.
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

        def finished(plan: Plan, row: Row) -> Done:
            done.append(Done(plan, row))
            kept.keep(done, network, optimizer)
            return done[-1]

        if not done:
            measured = measure(network, task.splits)
            yield finished({}, row_of(network, measured, measured, {}))
        for number, step in enumerate(steps[len(done) - 1 :], len(done)):
            found, cost = self._scored(number, step, score, first, kept)
            scored(number, found)
            plan = self.plan({name: each.scores for name, each in found.items()}, step)
            network.pruner.prune_groups(plan)
            row = self._tune(number, len(steps), tuned_on, optimizer, kept.epochs(number))
            yield finished(plan, row | {f"scoring_{key}": each for key, each in vars(cost).items()})

    def _scored(
        self, number: int, step: Step, score: Score, first: Scored | None, kept: Steps
    ) -> Scored:
        """The scores that lead to a step, of what loses units at it."""
        layers = tuple(layer for layer in self.network.layers if layer in step.layers)
        own = partial(score, self, layers)
        found, cost = first if first and number == 1 else kept.scores(number, own)
        return {name: found[name] for name in self.players(layers)}, cost

    def _tune(
        self, number: int, steps: int, data: Dataset, optimizer: Optimizer, kept: Epochs
    ) -> Row:
        """Fine-tune the network after a cut, and measure it before and after."""
        network, task = self.network, self.task
        if task.recalibrate:
            order = seeded(task.order, steps + number)  # not that of fine-tuning
            recalibrate(network.model, data, task.recalibrate, order)
        before, started = measure(network, task.splits), time.perf_counter()
        if not task.finetune.epochs:
            return row_of(network, before, before, {"finetune_seconds": 0.0})
        label = f"Fine-tuning, step {number} of {steps}"
        order = seeded(task.order, number)
        fit(network.model, optimizer, data, task.finetune, order, label, kept)
        spent = {"finetune_seconds": kept.seconds + time.perf_counter() - started}
        return row_of(network, before, measure(network, task.splits), spent)

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


def _lost(track: Track, layers: tuple[str, ...]) -> Scored:
    raise UserError(
        f"The scores of a finished step of the track '{track.name}' are missing beside it. Give "
        "force=true to run it anew."
    )


def measure(network: Network, splits: Splits) -> dict[str, float]:
    """Accuracy and loss on test and val."""
    found = {}
    for split in ("test", "val"):
        measured = evaluate(network.model, getattr(splits, split))
        found[f"{split}_accuracy"], found[f"{split}_loss"] = measured.accuracy, measured.loss
    return found


def row_of(
    network: Network, before: dict[str, float], after: dict[str, float], seconds: dict[str, float]
) -> Row:
    """The cost of the network as it stands beside what was measured before and after training."""
    size = network.size()
    row: Row = dict(size) | {f"removed_{k}": 1 - v / network.original[k] for k, v in size.items()}
    row |= {f"{key}_before": value for key, value in before.items()}
    row |= {f"{key}_after": value for key, value in after.items()}
    row |= seconds | {"latency_ms": network.latency_ms(), "time": time.time()}
    return row | {f"width/{layer}": width for layer, width in network.widths().items()}


def seeded(seed: int, stage: int) -> torch.Generator:
    """Random streams for one stage of training: they do not depend on what ran before."""
    own = seed_of(seed, stage)
    seed_all(own)  # Dropout and augmentation draw from the streams that everybody shares
    return torch.Generator().manual_seed(own)


def seed_of(seed: int, stage: int) -> int:
    """A seed of its own for each stage."""
    return int(np.random.SeedSequence([seed, stage]).generate_state(1)[0])
