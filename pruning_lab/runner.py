"""One experiment: a baseline, its attributions, and the curve of pruning it step by step."""

import copy
import logging
import time
from collections.abc import Callable, Collection
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import nn

from pruning_lab import cost, tracking
from pruning_lab.attributions import AttributionMetric
from pruning_lab.attributions.activations import ActivationMetric, run_together
from pruning_lab.attributions.coupled import TOGETHER, group_scores
from pruning_lab.attributions.players import Players, players_of_group, units_of_module
from pruning_lab.attributions.scores import Estimates, LayerEstimates, LayerScores
from pruning_lab.baseline import Baseline
from pruning_lab.checkpoint import load_state
from pruning_lab.datasets import Splits, loader
from pruning_lab.errors import UserError
from pruning_lab.graph import Group, units_of
from pruning_lab.plan import Plan, make_plan
from pruning_lab.progress import ScoringBar
from pruning_lab.prunable import choose_layers
from pruning_lab.pruner import Pruner
from pruning_lab.pruner.trial import Trial
from pruning_lab.record import Names, recording
from pruning_lab.schedules import Schedule, Step, ToTarget
from pruning_lab.setup import (
    baseline_determinants,
    build,
    build_model,
    check_numbers,
    digest_of_program,
    find_device,
    plain,
)
from pruning_lab.training import Training, evaluate, fit, part

log = logging.getLogger(__name__)

THREADS = torch.get_num_threads()
"""As many as torch chooses; a job of a sweep must not inherit another job's."""


class Experiment:
    """Everything one experiment needs, built and checked before any work starts."""

    def __init__(self, config: DictConfig, names: Names, output: Path) -> None:
        self.config, self.names, self.output = config, names, output
        check_numbers(config)
        self.device = find_device(config.device)
        torch.set_num_threads(config.threads or THREADS)
        self.schedule: Schedule = build(config.schedule, "schedule")
        self.training: Training = build(config.baseline.training, "baseline.training")
        self.finetune: Training = build(config.finetune, "finetune")
        self.client = tracking.connect(config.tracking.uri)
        self.splits: Splits = build(config.dataset, "dataset")
        torch.manual_seed(config.seeds.init)
        self.model = build_model(config.model, self.splits).to(self.device)
        if config.baseline.checkpoint is not None:  # refused now if it does not fit
            load_state(copy.deepcopy(self.model), config.baseline.checkpoint)
        determinants = baseline_determinants(config, self.device, self.splits, self.model)
        self.baseline = Baseline(Path(config.baseline.folder), determinants)
        size = self.splits.input_size
        self.pruner = Pruner(self.model, size, self.device)
        self.layers, self.pruned = choose_layers(self.model, self.pruner.structure, size)
        groups = self._groups().values()
        self.steps = self.schedule.steps_for(
            [[layer for layer in group.players if layer in self.layers] for group in groups]
        )
        self.scored = loader(self.splits.score, config.scoring.batch_size)
        self.criteria = {**config.attributions, names.metric: config.metric}
        self.metrics = {name: self._metric(settings) for name, settings in self.criteria.items()}
        self.original = self._size(self.model)
        # refuses a target that no plan can reach; where players take different numbers of units,
        # how many may go depends a little on their order, which only the scores will tell
        if isinstance(self.schedule, ToTarget):
            players = {name: len(group) for name, group in self._groups().items()}
            widths = self._widths() if self.schedule.coupled != TOGETHER else players
            self._plan({name: np.zeros(width) for name, width in widths.items()}, self.steps[-1])

    def run(self) -> float:
        """The method; returns the test accuracy after the last step."""
        with recording(
            self.client, self.config, self.names, self.baseline, self.output
        ) as self.record:
            self._obtain_baseline()
            found, seconds = self._attribute()
            self._prepare_pruning()
            start = self._measure()
            self._keep_row(0, start, start, {})
            for number, step in enumerate(self.steps, 1):
                layers = tuple(layer for layer in self.layers if layer in step.layers)
                if number > 1:  # the first step's scores are those of the baseline
                    found, seconds = self._score(self.names.metric, layers)
                found = {name: found[name] for name in self._players(layers)}
                self.record.scores(number, found)
                scores = {name: each.scores for name, each in found.items()}
                self.pruner.prune_groups(self._plan(scores, step))
                before = self._measure()
                tuned = self._tune(number)
                after = self._measure() if self.finetune.epochs else before
                self._keep_row(number, before, after, {"scoring_seconds": seconds} | tuned)
            self.record.conclude(self.model, self.pruner.kept, self.config.tracking.uri)
        return self.record.rows[-1]["test_accuracy_after"]

    # -- the stages ---------------------------------------------------------------------------

    def _obtain_baseline(self) -> None:
        """The weights that every criterion starts from: trained once, or loaded."""

        def train(model: nn.Module) -> None:
            if self.config.baseline.checkpoint is not None:
                load_state(model, self.config.baseline.checkpoint)
            elif not self.config.model.get("weights"):
                label = f"Training {self.names.model} on {self.names.dataset}"
                log.info("%s, %d epochs ...", label, self.training.epochs)
                optimizer = self.training.optimizer(model)
                fit(model, optimizer, self.splits.train, self.training, self._seeded(0), label)

        new = self.baseline.obtain(self.model, train)
        log.info("Baseline %s: %s", self.baseline.name, "ready" if new else "found on disk")

    def _attribute(self) -> tuple[LayerEstimates, float]:
        """All wanted criteria on the baseline, kept beside it; returns the chosen one's."""
        found: Estimates = {}
        seconds: dict[str, float] = {}
        layers = tuple(self.layers)
        together = cache(partial(self._score_together, layers))
        for name, settings in self.criteria.items():
            found[name], seconds[name] = self.baseline.scores(
                name,
                plain(settings)
                | plain(self.config.scoring)
                | {"code": self._code(name), "coupled": self.schedule.coupled, "layers": layers},
                lambda name=name: (
                    together()[name]  # type: ignore[misc]
                    if isinstance(self.metrics[name], ActivationMetric)
                    else self._score(name, layers)
                ),
            )
        self.record.baseline_scores(found, seconds)
        return found[self.names.metric], seconds[self.names.metric]

    def _prepare_pruning(self) -> None:
        """One optimizer for the whole experiment: its momentum is cut with the weights."""
        self.optimizer = self.finetune.optimizer(self.model)
        self.pruner.optimizer = self.optimizer
        self.tuned_on = part(self.splits.train, self.finetune.share, self._seeded(0))

    def _score(self, name: str, layers: tuple[str, ...]) -> tuple[LayerEstimates, float]:
        """Scores behind BatchNorm and non-linearity, and the seconds they took."""
        players, started = self._players(layers), time.perf_counter()
        log.info("Scoring %d layers by %s (%s) ...", len(players), name, self._settings(name))
        with ScoringBar(name, self._work(players)) as bar:
            found = self.metrics[name].estimate(list(players.values()), True, bar)
        return dict(zip(players, found, strict=True)), time.perf_counter() - started

    def _score_together(self, layers: tuple[str, ...]) -> dict[str, tuple[LayerEstimates, float]]:
        """All criteria on activations and gradients by one pass; each is said to take all of it."""
        metrics = {
            k: each for k, each in self.metrics.items() if isinstance(each, ActivationMetric)
        }
        players, started = self._players(layers), time.perf_counter()
        log.info("Scoring %d layers by %s in one pass ...", len(players), ", ".join(metrics))
        found = run_together(list(metrics.values()), list(players.values()), True)
        seconds = time.perf_counter() - started
        return {
            name: (dict(zip(players, scores, strict=True)), seconds)
            for name, scores in zip(metrics, found, strict=True)
        }

    def _players(self, layers: tuple[str, ...]) -> dict[str, Players]:
        """What is scored for these layers: their groups, or each layer by itself."""
        if self.schedule.coupled != TOGETHER:
            return {layer: units_of_module(self.layers[layer]) for layer in layers}
        groups = self._groups(layers).items()
        return {name: players_of_group(self.model, group) for name, group in groups}

    def _plan(self, scores: LayerScores, step: Step) -> Plan:
        """Which units go, so that the step's share of the original is gone."""
        trial = Trial(self.pruner)
        groups = self._groups(step.layers)
        of = self.schedule.of if isinstance(self.schedule, ToTarget) else "units"

        def gone(plan: Plan) -> float:
            return 1 - self._size(trial.after(plan), of)[of] / self.original[of]

        return make_plan(self._by_player(groups, scores), groups, step, self.schedule, gone)

    def _by_player(self, groups: dict[str, Group], scores: LayerScores) -> LayerScores:
        """The score of every player of the groups."""
        if self.schedule.coupled == TOGETHER:
            return {name: scores[name] for name in groups}
        one_draw = self.metrics[self.names.metric].independent
        aggregate = "first" if one_draw else self.schedule.coupled
        return {name: group_scores(group, scores, aggregate) for name, group in groups.items()}

    def _tune(self, number: int) -> dict[str, float]:
        """Fine-tune after a cut; returns the seconds it took."""
        started = time.perf_counter()
        if self.finetune.epochs:
            label = f"Fine-tuning, step {number} of {len(self.steps)}"
            order = self._seeded(number)
            fit(self.model, self.optimizer, self.tuned_on, self.finetune, order, label)
        return {"finetune_seconds": time.perf_counter() - started}

    def _measure(self) -> dict[str, float]:
        """Accuracy and loss on test and val."""
        found = {}
        for split in ("test", "val"):
            measured = evaluate(self.model, getattr(self.splits, split))
            found[f"{split}_accuracy"], found[f"{split}_loss"] = measured.accuracy, measured.loss
        return found

    def _keep_row(
        self,
        step: int,
        before: dict[str, float],
        after: dict[str, float],
        seconds: dict[str, float],
    ) -> None:
        """Write one step down: the cost of the model as it stands beside what was measured."""
        size = self._size(self.model)
        row = size | {f"removed_{k}": 1 - value / self.original[k] for k, value in size.items()}
        row |= {f"{key}_before": value for key, value in before.items()}
        row |= {f"{key}_after": value for key, value in after.items()}
        row |= seconds | {"latency_ms": cost.latency_ms(self.model, self.splits.input_size)}
        row |= {f"width/{layer}": width for layer, width in self._widths().items()}
        self.record.row(step, row)
        log.info(
            "Step %d of %d: %.1f %% of the FLOPs gone, test accuracy %.2f %% (%.2f %% before "
            "fine-tuning)", step, len(self.steps), 100 * row["removed_flops"],
            100 * row["test_accuracy_after"], 100 * row["test_accuracy_before"],
        )  # fmt: skip

    # -- what the stages ask ------------------------------------------------------------------

    def _size(self, model: nn.Module, *wanted: str) -> dict[str, float]:
        """FLOPs, parameters and units of a model, or those ``wanted``."""
        ways: dict[str, Callable[[], float]] = {
            "flops": lambda: cost.flops(model, self.splits.input_size),
            "parameters": lambda: cost.parameters(model),
            "units": lambda: sum(units_of(model.get_submodule(layer)) for layer in self.pruned),
        }
        return {name: ways[name]() for name in wanted or ways}

    def _groups(self, layers: Collection[str] | None = None) -> dict[str, Group]:
        """The groups of units that can be scored, as the model stands; those of some layers."""
        found = self.pruner.structure.groups.items()
        return {
            name: group
            for name, group in found
            if group.covered_by(self.layers)
            and (layers is None or not group.players.keys().isdisjoint(layers))
        }

    def _widths(self) -> dict[str, int]:
        return {name: units_of(layer) for name, layer in self.pruned.items()}

    def _work(self, players: dict[str, Players]) -> list[float]:
        """For each set of players the FLOPs behind it: what an evaluation takes (for the bar)."""
        flops = cost.flops_by_module(self.model, self.splits.input_size)
        behind, left = {}, sum(flops.values())
        for name, count in flops.items():
            left -= count
            behind[name] = left
        return [behind.get(name, 1) for name in players]

    def _settings(self, name: str) -> str:
        settings = plain(self.criteria[name]).items()
        shown = {k: v for k, v in settings if not (k.startswith("_") or v is None)}
        return ", ".join(f"{key}={value}" for key, value in shown.items())

    # -- what is built ------------------------------------------------------------------------

    def _metric(self, settings: DictConfig) -> AttributionMetric:
        if settings.get("reduction") == "none":
            raise UserError("metric.reduction=none gives no ranking; choose mean, for example.")
        make = build(settings, "metric")
        try:
            return make(self.model, self.scored, F.cross_entropy, self.device)
        except TypeError as error:
            raise UserError(f"metric: {error}".replace("__init__()", "this criterion")) from error

    def _code(self, name: str) -> str:
        """A hash of the code that the scores of a criterion depend on."""
        return digest_of_program(type(self.metrics[name]))

    def _seeded(self, stage: int) -> torch.Generator:
        """Random streams for one stage of training: they do not depend on what ran before."""
        seed = int(np.random.SeedSequence([self.config.seeds.order, stage]).generate_state(1)[0])
        torch.manual_seed(seed)  # Dropout and augmentation draw from torch's own stream
        return torch.Generator().manual_seed(seed)
