"""Estimate the passes and seconds of an experiment, and the network after each cut."""

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from pruning_lab.attributions import AttributionMetric
from pruning_lab.attributions.base import at_rest
from pruning_lab.attributions.evidence.activations import shares_pass
from pruning_lab.datasets import Splits, loader
from pruning_lab.errors import UserError
from pruning_lab.experiment.network import Network
from pruning_lab.experiment.setup import Setup
from pruning_lab.partial_forward.hooked import HookedGraph
from pruning_lab.pruning.schedules import LayerByLayer, Step
from pruning_lab.records.step import Size
from pruning_lab.runtime.inputs import call, length, move
from pruning_lab.runtime.random_streams import streams_kept
from pruning_lab.tasks.task import Task
from pruning_lab.training.recalibration import with_statistics
from pruning_lab.training.recipe import Training


@dataclass(frozen=True)
class Estimate:
    """Estimated passes and seconds; upper bounds if ``at_most``."""

    forward: float = 0.0
    backward: float = 0.0
    seconds: float = 0.0
    at_most: bool = False

    def __add__(self, other: "Estimate") -> "Estimate":
        return Estimate(
            self.forward + other.forward,
            self.backward + other.backward,
            self.seconds + other.seconds,
            self.at_most or other.at_most,
        )


@dataclass(frozen=True)
class Speed:
    """Seconds that a sample takes in a batch: forward, back to the first layer, in training."""

    forward: float
    backward: float
    training: float


@dataclass(frozen=True)
class Stage:
    """A step of the schedule: its scoring, and the network after its cut."""

    step: Step
    scored: int
    scoring: Estimate | None
    size: Size


class Forecast:
    """The estimates of an experiment; its network stays as it is.

    ``on_baseline`` is by criterion, None where it cannot tell; ``stages`` is by step.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup, self.network, self.schedule = setup, setup.network, setup.schedule
        train = len(setup.splits.train)  # type: ignore[arg-type]
        self._samples = max(2, round(setup.finetune.share * train))  # of the fine-tuning
        batch_size = setup.settings.batch_size
        self._speed = _speed_of(setup.network, setup.splits, setup.task, batch_size, setup.training)
        layers = tuple(self.network.layers)
        self.on_baseline = {
            name: self._predicted(metric, self.network, layers)
            for name, metric in setup.metrics.items()
        }
        self.stages = list(self._stages())

    def together(self) -> list[str]:
        """Return the criteria that share one pass over the data."""
        return [name for name, metric in self.setup.metrics.items() if shares_pass(metric)]

    def _predicted(
        self, metric: AttributionMetric, network: Network, layers: Sequence[str]
    ) -> Estimate | None:
        """Estimate the scoring of these layers; None if the criterion cannot predict it."""
        own = copy.copy(metric)
        own.model = network.model
        unit_groups = list(network.unit_groups(layers, self.schedule.coupled).values())
        passes = own.predict(unit_groups, find_best_evaluation_module=True)
        if passes is None:
            return None
        left, speed = self._left(network.size()), self._speed
        seconds = left * (passes.forward * speed.forward + passes.backward * speed.backward)
        limit = seconds if passes.seconds is None else passes.seconds
        return Estimate(passes.forward, passes.backward, min(seconds, limit), passes.at_most)

    def _attributions(self) -> Estimate:
        """Estimate the scoring of the baseline by all criteria; a shared pass counts once."""
        known = {name: each for name, each in self.on_baseline.items() if each is not None}
        shared = [known.pop(name) for name in self.together() if name in known]
        longest = max(shared, key=lambda each: each.seconds, default=Estimate())
        return sum(known.values(), longest)

    def _stages(self) -> Iterator[Stage]:
        """Prune a copy step by step, of units drawn at random."""
        network, draw = self.network.copy(), np.random.default_rng(0)
        metric = self.setup.metrics[self.setup.names.metric]
        for step in self.setup.steps:
            layers = [layer for layer in network.layers if layer in step.layers]
            scoring = self._predicted(metric, network, layers)
            scored = len(network.unit_groups(layers, self.schedule.coupled))
            if self.aim(step) is not None:
                groups = network.groups(step.layers)
                scores = {name: draw.random(len(group)) for name, group in groups.items()}
                network.pruner.prune_groups(network.plan(scores, step, self.schedule))
            yield Stage(step, scored, scoring, network.size())

    def aim(self, step: Step) -> float | None:
        """Return the share to remove at a step; None if it depends on the scores."""
        return self.schedule.share if isinstance(self.schedule, LayerByLayer) else step.ratio

    def tuning(self, stage: Stage) -> Estimate:
        """Estimate the fine-tuning after a cut."""
        return self._trained(self.setup.finetune.samples(self._samples), stage.size)

    def _trained(self, samples: int, size: Size) -> Estimate:
        return Estimate(samples, samples, samples * self._left(size) * self._speed.training)

    def _left(self, size: Size) -> float:
        return size.flops / self.network.original.flops

    def parts(self) -> dict[str, Estimate]:
        """Return an estimate for each part of the experiment, by name."""
        setup, stages = self.setup, self.stages
        again = sum((stage.scoring or Estimate() for stage in stages[1:]), Estimate())
        tuning = sum((self.tuning(stage) for stage in stages), Estimate())
        baseline = setup.training.samples(len(setup.splits.train))  # type: ignore[arg-type]
        trained = 0 if setup.settings.given_weights else baseline
        anew = self._recalibrated()
        before = 2 if anew.forward else 1
        parts = {
            "training the baseline": self._trained(trained, self.network.original),
            "criteria on the baseline": self._attributions(),
            f"scoring, steps 2 to {len(stages)}": again,
            "recalibration": anew,
            "fine-tuning": tuning,
            f"{setup.task.primary.label} on val and test": self._evaluated(
                before + bool(setup.finetune)
            ),
        }
        controls = setup.settings.controls
        if controls.untuned and setup.finetune:
            parts["the untuned track"] = again + anew + self._evaluated(before)
        if controls.stale and anew.forward:
            parts["the stale track"] = again + self._evaluated(1)
        if controls.scratch:
            parts["what is left, from scratch"] = self._trained(baseline, stages[-1].size)
        return parts

    def _recalibrated(self) -> Estimate:
        """Estimate the recomputation of BatchNorm's statistics after each cut."""
        if not with_statistics(self.network.model):
            return Estimate()
        samples = min(self.setup.settings.after_cut.recalibrate, self._samples)
        left = sum(self._left(stage.size) for stage in self.stages)
        forward = samples * len(self.stages)
        return Estimate(forward, 0, samples * left * self._speed.forward)

    def _evaluated(self, times: int) -> Estimate:
        """Estimate val and test on the baseline, and this many ``times`` after each cut."""
        splits = self.setup.splits
        samples = len(splits.val) + len(splits.test)  # type: ignore[arg-type]
        lefts = [1.0, *times * [self._left(stage.size) for stage in self.stages]]
        return Estimate(samples * len(lefts), 0, samples * sum(lefts) * self._speed.forward)


def _speed_of(
    network: Network, splits: Splits, task: Task, batch_size: int, training: Training
) -> Speed:
    """Measure a network in its current state; ``batch_size`` is that of the scoring."""
    model, device = network.model, next(network.model.parameters()).device
    batch = move(next(iter(loader(splits.score, batch_size))), device)
    inputs, target = task.inputs(batch), task.target(batch)
    first = next(iter(network.layers.values()))

    def there_and_back() -> None:
        output, activations = HookedGraph(model, UserError()).record(inputs, [first])
        loss = task.loss(task.output(output), target, reduction="sum")
        torch.autograd.grad(loss, activations)

    with at_rest(model):
        with torch.no_grad():
            forward = _seconds(lambda: call(model, inputs), device) / length(inputs)
        both = _seconds(there_and_back, device) / length(inputs)
    trained = _training_speed(model, splits, task, training)
    return Speed(forward, max(0.0, both - forward), trained)


def _training_speed(model: nn.Module, splits: Splits, task: Task, training: Training) -> float:
    """Seconds that a sample takes in training, on a copy."""
    device = next(model.parameters()).device
    batch = move(next(iter(loader(splits.train, training.batch_size))), device)
    own = copy.deepcopy(model).train()
    optimizer = training.optimizer(own)

    def step() -> None:
        optimizer.zero_grad()
        task.loss(task.run(own, batch), task.target(batch)).backward()
        optimizer.step()

    with streams_kept([device]):
        return _seconds(step, device) / length(batch)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """The median of up to five runs, of one that takes long; after one to warm up."""
    times: list[float] = []
    work()
    while not times or (len(times) < 5 and sum(times) < 1):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times)
