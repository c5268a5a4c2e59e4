"""Estimate the passes and seconds of an experiment, and the network after each cut."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pruning_lab.attributions import AttributionMetric
from pruning_lab.attributions.evidence.activations import shares_pass
from pruning_lab.dry_run.speed import speed_of
from pruning_lab.experiment.network import Network
from pruning_lab.experiment.setup import Setup
from pruning_lab.profiling.passes import Prediction
from pruning_lab.pruning.schedules import LayerByLayer, Step
from pruning_lab.training.recalibration import with_statistics


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
class Stage:
    """A step of the schedule: its scoring, and the network after its cut."""

    step: Step
    scored: int
    scoring: Estimate | None
    size: dict[str, float]


class Forecast:
    """The estimates of an experiment; its network stays as it is.

    ``on_baseline`` is by criterion, None where it cannot tell; ``stages`` is by step.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup, self.network, self.schedule = setup, setup.network, setup.schedule
        batch_size = setup.settings.batch_size
        self._speed = speed_of(setup.network, setup.splits, setup.task, batch_size, setup.training)
        layers = tuple(self.network.layers)
        self.on_baseline = {
            name: self._predicted(metric, self.network, layers)
            for name, metric in setup.metrics.items()
        }
        self.stages = list(self._stages())

    # -- scoring ------------------------------------------------------------------------------

    def together(self) -> list[str]:
        """The criteria that one pass over the data serves."""
        return [name for name, metric in self.setup.metrics.items() if shares_pass(metric)]

    def _predicted(
        self, metric: AttributionMetric, network: Network, layers: Sequence[str]
    ) -> Estimate | None:
        """Estimate the scoring of these layers; None if the criterion cannot predict it."""
        own = copy.copy(metric)
        own.model = network.model
        unit_groups = list(network.unit_groups(layers, self.schedule.coupled).values())
        found = own.predict(unit_groups, find_best_evaluation_module=True)
        return None if found is None else self._timed(found, network)

    def _timed(self, found: Prediction, network: Network) -> Estimate:
        left, speed = self._left(network.size()), self._speed
        seconds = left * (found.forward * speed.forward + found.backward * speed.backward)
        limit = seconds if found.seconds is None else found.seconds
        return Estimate(found.forward, found.backward, min(seconds, limit), found.at_most)

    def _attributions(self) -> Estimate:
        """All criteria on the baseline; one pass counts once."""
        found = {name: each for name, each in self.on_baseline.items() if each is not None}
        shared = [found.pop(name) for name in self.together() if name in found]
        longest = max(shared, key=lambda each: each.seconds, default=Estimate())
        return sum(found.values(), longest)

    # -- the steps ----------------------------------------------------------------------------

    def _stages(self) -> Iterator[Stage]:
        """Step by step on a copy that loses units drawn at random."""
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
        """The share to remove at a step; None where only the scores tell it."""
        return self.schedule.share if isinstance(self.schedule, LayerByLayer) else step.ratio

    def tuning(self, stage: Stage) -> Estimate:
        """The fine-tuning after a cut."""
        finetune = self.setup.finetune
        samples = max(2, round(finetune.share * len(self.setup.splits.train)))  # type: ignore[arg-type]
        return self._trained(finetune.samples(samples), stage.size)

    def _trained(self, samples: int, size: Mapping[str, float]) -> Estimate:
        return Estimate(samples, samples, samples * self._left(size) * self._speed.training)

    def _left(self, size: Mapping[str, float]) -> float:
        return size["flops"] / self.network.original["flops"]

    # -- in all -------------------------------------------------------------------------------

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
        """The samples from which BatchNorm's statistics are made anew after each cut."""
        setup = self.setup
        if not with_statistics(self.network.model):
            return Estimate()
        share = setup.finetune.share * len(setup.splits.train)  # type: ignore[arg-type]
        samples = min(setup.settings.after_cut.recalibrate, max(2, round(share)))
        left = sum(self._left(stage.size) for stage in self.stages)
        forward = samples * len(self.stages)
        return Estimate(forward, 0, samples * left * self._speed.forward)

    def _evaluated(self, times: int) -> Estimate:
        """Val and test on the baseline and so many times after each cut."""
        splits = self.setup.splits
        samples = len(splits.val) + len(splits.test)  # type: ignore[arg-type]
        lefts = [1.0, *times * [self._left(stage.size) for stage in self.stages]]
        return Estimate(samples * len(lefts), 0, samples * sum(lefts) * self._speed.forward)
