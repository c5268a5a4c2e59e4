"""What an experiment would do and about what it would take: nothing is written or trained."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from omegaconf import DictConfig, OmegaConf

from pruning_lab import cost, tracking
from pruning_lab.attributions import AttributionMetric
from pruning_lab.attributions.activations import shares_pass
from pruning_lab.datasets import Splits
from pruning_lab.graph import units_of
from pruning_lab.ledger import Prediction
from pruning_lab.network import Network
from pruning_lab.plain_text import amount, duration, kind_of, table
from pruning_lab.schedules import LayerByLayer, Schedule, Step, ToTarget
from pruning_lab.speed import speed_of
from pruning_lab.training import Training, with_statistics

NOTES = """\
A pass is one sample through the whole network as it stands; parts count by their share of the
FLOPs. There are "at most" so many where units that a sample leaves at 0 are skipped, or a rule may
end the sampling. Looks at the model, a few samples a layer, come on top.
Times are passes by the time of one, measured on this device on the network as it is built. They are
rough: the time of small parts does not go with their FLOPs. Networks after a cut are estimates,
too: units drawn at random went. What is on disk already (baseline, its scores) takes nothing."""


AT_MOST = "at most"
UNKNOWN = ["unknown", "unknown", "unknown"]


@dataclass(frozen=True)
class Estimate:
    """Passes and seconds that something will take; with ``at_most`` perhaps fewer."""

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

    def cells(self) -> list[str]:
        """Forward, backward, time."""
        return [f"{self.forward:,.0f}", f"{self.backward:,.0f}", duration(self.seconds)]


@dataclass(frozen=True)
class Stage:
    """A step of the schedule: its scoring, and the network after its cut."""

    step: Step
    scored: int
    scoring: Estimate | None
    size: dict[str, float]


class DryRun:
    """The plan of an experiment whose parts are given, as ``text()``.

    ``metrics`` are the criteria that score the baseline, by name, on the network's model;
    ``chosen`` is the one that prunes. The network stays as it is.
    """

    def __init__(
        self,
        config: DictConfig,
        network: Network,
        metrics: Mapping[str, AttributionMetric],
        chosen: str,
        steps: Sequence[Step],
        schedule: Schedule,
        splits: Splits,
        training: Training,
        finetune: Training,
    ) -> None:
        self.config, self.network, self.metrics, self.chosen = config, network, metrics, chosen
        self.steps, self.schedule, self.splits = steps, schedule, splits
        self.training, self.finetune = training, finetune
        self.speed = speed_of(network, splits, config.scoring.batch_size, training)
        layers = tuple(network.layers)
        self.on_baseline = {
            name: self._predicted(metric, network, layers) for name, metric in metrics.items()
        }
        self.stages = list(self._stages())

    def text(self) -> str:
        """No line of the tables is longer than 100 columns."""
        shown = self.config.copy()
        shown.tracking.uri = tracking.without_password(self.config.tracking.uri)
        sections = {
            "Dry run: nothing is written, nothing is trained": OmegaConf.to_yaml(
                shown, resolve=True
            ).splitlines(),
            self._network_title(): self._layers(),
            "Criteria on the baseline": self._criteria(),
            self._steps_title(): self._steps(),
            "In all": [*self._total(), "", *NOTES.splitlines()],
        }
        parts = [[title, "-" * len(title), *lines] for title, lines in sections.items()]
        return "\n\n".join("\n".join(part) for part in parts)

    # -- the network --------------------------------------------------------------------------

    def _network_title(self) -> str:
        size = self.network.original
        return (
            f"{type(self.network.model).__name__} on {' x '.join(map(str, self.splits.input_size))}"
            f": {amount(size['flops'])}FLOPs, {size['parameters']:,} parameters, "
            f"{size['units']:,} units that may go"
        )

    def _layers(self) -> list[str]:
        """Every layer that may lose units, and what goes with it."""
        flops = cost.flops_by_module(self.network.model, self.network.input_size)
        home = {
            layer: [other for other in group.players if other != layer]
            for group in self.network.groups().values()
            for layer in group.players
        }
        rows = []
        for name, layer in self.network.pruned.items():
            others = home.get(name, [])
            more = f" and {len(others) - 1} more" if len(others) > 1 else ""
            share = flops.get(name, 0) / self.network.original["flops"]
            rows.append(
                [name, kind_of(layer), f"{units_of(layer):,}", f"{100 * share:.1f} %",
                 others[0] + more if others else "", "" if name in self.network.layers else "no"]
            )  # fmt: skip
        wanted = [0, 1, 2, 3, *([4] if any(row[4] for row in rows) else [])]
        wanted += [5] if any(row[5] for row in rows) else []
        heads = ["layer", "kind", "units", "FLOPs", "goes with", "scored"]
        chosen = [[row[place] for place in wanted] for row in [heads, *rows]]
        return table(chosen[0], chosen[1:], "llrrll"[: len(wanted)])

    # -- scoring ------------------------------------------------------------------------------

    def _predicted(
        self, metric: AttributionMetric, network: Network, layers: Sequence[str]
    ) -> Estimate | None:
        """What scoring these layers of a network takes; None where the criterion cannot tell."""
        own = copy.copy(metric)
        own.model = network.model
        players = list(network.players(layers, self.schedule.coupled).values())
        found = own.predict(players, find_best_evaluation_module=True)
        return None if found is None else self._timed(found, network)

    def _timed(self, found: Prediction, network: Network) -> Estimate:
        left = network.size()["flops"] / self.network.original["flops"]
        seconds = left * (found.forward * self.speed.forward + found.backward * self.speed.backward)
        limit = seconds if found.seconds is None else found.seconds
        return Estimate(found.forward, found.backward, min(seconds, limit), found.at_most)

    def _criteria(self) -> list[str]:
        together, rows = self._together(), []
        for name, estimate in self.on_baseline.items():
            others = [other for other in together if other != name]
            shared = f"one pass with {', '.join(others)}" if name in together and others else ""
            note = AT_MOST if estimate and estimate.at_most else shared
            rows.append([name, *(estimate.cells() if estimate else UNKNOWN), note])
        return table(["criterion", "forward", "backward", "time", ""], rows, "lrrrl")

    def _together(self) -> list[str]:
        """The criteria that one pass over the data serves."""
        return [name for name, metric in self.metrics.items() if shares_pass(metric)]

    def _attributions(self) -> Estimate:
        """All criteria on the baseline; one pass counts once."""
        found = {name: each for name, each in self.on_baseline.items() if each is not None}
        shared = [found.pop(name) for name in self._together() if name in found]
        longest = max(shared, key=lambda each: each.seconds, default=Estimate())
        return sum(found.values(), longest)

    # -- the steps ----------------------------------------------------------------------------

    def _stages(self) -> Iterator[Stage]:
        """Step by step on a copy that loses units drawn at random."""
        network, draw = self.network.copy(), np.random.default_rng(0)
        metric = self.metrics[self.chosen]
        for step in self.steps:
            layers = [layer for layer in network.layers if layer in step.layers]
            scoring = self._predicted(metric, network, layers)
            scored = len(network.players(layers, self.schedule.coupled))
            if self._aim(step) is not None:
                groups = network.groups(step.layers)
                scores = {name: draw.random(len(group)) for name, group in groups.items()}
                network.pruner.prune_groups(network.plan(scores, step, self.schedule))
            yield Stage(step, scored, scoring, network.size())

    def _steps_title(self) -> str:
        of = f" (of the {self.schedule.of})" if isinstance(self.schedule, ToTarget) else ""
        if isinstance(self.schedule, LayerByLayer):
            of = " (target: of one layer, the last first; gone: of all units)"
        bounded = any(stage.scoring and stage.scoring.at_most for stage in self.stages)
        return f"Steps{of}, scored by {self.chosen}" + (f": {AT_MOST}" if bounded else "")

    def _steps(self) -> list[str]:
        rows = []
        for number, stage in enumerate(self.stages, 1):
            of = self.schedule.of if isinstance(self.schedule, ToTarget) else "units"
            gone = 100 * (1 - stage.size[of] / self.network.original[of])
            aim, reached = self._aim(stage.step), ["below 0", "unknown"]
            if aim is not None:
                reached = [f"{100 * aim:.1f} %", f"{gone:.1f} %"]
            known = stage.scoring.cells() if stage.scoring else UNKNOWN
            cells = ["as above", "", ""] if number == 1 else known
            tuning = duration(self._tuning(stage).seconds)
            rows.append(
                [str(number), *reached, str(stage.scored), amount(stage.size["flops"]),
                 amount(stage.size["parameters"]), f"{stage.size['units']:,}", *cells, tuning]
            )  # fmt: skip
        heads = ["step", "target", "gone", "scored", "FLOPs", "params", "units",
                 "forward", "backward", "scoring", "fine-tuning"]  # fmt: skip
        return table(heads, rows, "r" * len(heads))

    def _aim(self, step: Step) -> float | None:
        """Return the share to remove; None where only the scores tell it."""
        return self.schedule.share if isinstance(self.schedule, LayerByLayer) else step.ratio

    def _tuning(self, stage: Stage) -> Estimate:
        samples = max(2, round(self.finetune.share * len(self.splits.train)))  # type: ignore[arg-type]
        return self._trained(self.finetune.samples(samples), stage.size)

    def _trained(self, samples: int, size: Mapping[str, float]) -> Estimate:
        left = size["flops"] / self.network.original["flops"]
        return Estimate(samples, samples, samples * left * self.speed.training)

    # -- in all -------------------------------------------------------------------------------

    def _total(self) -> list[str]:
        parts = {name: each for name, each in self._parts().items() if each.seconds}
        parts["in all"] = sum(parts.values(), Estimate())
        rows = [
            [name, *each.cells(), AT_MOST if each.at_most else ""] for name, each in parts.items()
        ]
        return table(["", "forward", "backward", "time", ""], rows, "lrrrl")

    def _parts(self) -> dict[str, Estimate]:
        original, last = self.network.original, self.stages[-1].size
        again = sum((stage.scoring or Estimate() for stage in self.stages[1:]), Estimate())
        tuning = sum((self._tuning(stage) for stage in self.stages), Estimate())
        given = self.config.baseline.checkpoint is not None or self.config.model.get("weights")
        baseline = self.training.samples(len(self.splits.train))  # type: ignore[arg-type]
        anew = self._recalibrated()
        before = 2 if anew.forward else 1
        parts = {
            "training the baseline": self._trained(0 if given else baseline, original),
            "criteria on the baseline": self._attributions(),
            f"scoring, steps 2 to {len(self.stages)}": again,
            "recalibration": anew,
            "fine-tuning": tuning,
            "accuracy on val and test": self._evaluated(before + bool(self.finetune)),
        }
        if self.config.controls.untuned and self.finetune:
            parts["the untuned track"] = again + anew + self._evaluated(before)
        if self.config.controls.stale and anew.forward:
            parts["the stale track"] = again + self._evaluated(1)
        if self.config.controls.scratch:
            parts["what is left, from scratch"] = self._trained(baseline, last)
        return parts

    def _recalibrated(self) -> Estimate:
        """The samples from which BatchNorm's statistics are made anew after each cut."""
        if not with_statistics(self.network.model):
            return Estimate()
        share = self.finetune.share * len(self.splits.train)  # type: ignore[arg-type]
        samples = min(self.config.after_cut.recalibrate, max(2, round(share)))
        left = sum(s.size["flops"] for s in self.stages) / self.network.original["flops"]
        return Estimate(samples * len(self.stages), 0, samples * left * self.speed.forward)

    def _evaluated(self, times: int) -> Estimate:
        """Val and test on the baseline and so many times after each cut."""
        samples = len(self.splits.val) + len(self.splits.test)  # type: ignore[arg-type]
        sizes = [self.network.original["flops"], *times * [s.size["flops"] for s in self.stages]]
        passes = sum(sizes) / self.network.original["flops"]  # as long as so many of the first
        return Estimate(samples * len(sizes), 0, samples * passes * self.speed.forward)
