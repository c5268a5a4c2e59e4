"""One experiment: a baseline, its attributions, and the curve of pruning it step by step."""

import copy
import logging
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, cached_property, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import nn

from pruning_lab import ranks, tracking
from pruning_lab.atomic import check_folder
from pruning_lab.attributions import AttributionMetric
from pruning_lab.attributions.activations import run_together, shares_pass
from pruning_lab.attributions.coupled import TOGETHER
from pruning_lab.attributions.scores import Estimates, LayerEstimates
from pruning_lab.baseline import Baseline
from pruning_lab.checkpoint import RECIPE, load_state, save_pruned
from pruning_lab.datasets import loader
from pruning_lab.dry_run import DryRun
from pruning_lab.environment import working
from pruning_lab.errors import UserError
from pruning_lab.identity import (
    Job,
    baseline_determinants,
    digest_of_network,
    fresh_model,
    identify,
)
from pruning_lab.ledger import Cost, measured
from pruning_lab.network import Network
from pruning_lab.observed import watching
from pruning_lab.plain_text import layers_in_words
from pruning_lab.plan import Plan
from pruning_lab.progress import ScoringBar
from pruning_lab.record import Names, Rows, find_finished, recording, tags
from pruning_lab.rehearsal import check_storable, check_trained_state
from pruning_lab.resume import Checkpoint
from pruning_lab.schedules import NegativeScores, Schedule, ToTarget
from pruning_lab.setup import build, plain
from pruning_lab.sources import digest_of_program
from pruning_lab.track import (
    MAIN,
    SCRATCH,
    Done,
    Row,
    Scored,
    Stages,
    Task,
    Track,
    controls,
    done_of,
    measure,
    seed_of,
    seeded,
)
from pruning_lab.training import Epochs, Training, fit, with_statistics

log = logging.getLogger(__name__)


def finished(config: DictConfig, job: Job) -> float | None:
    """The validation accuracy this configuration ended with; None where it is not finished."""
    done = ranks.agreed(lambda: find_finished(config, job))
    if done is None:
        return None
    log.info(
        "Finished already: run %s (%s), validation accuracy %.2f %%, test accuracy %.2f %%. "
        "force=true runs it again.",
        done.run_id, done.name, 100 * done.val_accuracy, 100 * done.test_accuracy,
    )  # fmt: skip
    where = tracking.where_to_look(config.tracking.uri, done.experiment_id)
    log.info("Its curves, figures and models: %s", where)
    return done.val_accuracy


class Experiment:
    """Everything one experiment needs, built and checked before any work starts."""

    @working()
    def __init__(
        self, config: DictConfig, names: Names, output: Path, overrides: Sequence[str] = ()
    ) -> None:
        self.config, self.names, self.output = config, names, output
        self.overrides = overrides
        self.job = identify(config)
        self.device, self.splits = self.job.device, self.job.splits
        torch.set_num_threads(self.job.threads)
        self.schedule: Schedule = build(config.schedule, "schedule", Schedule)
        self.training: Training = build(config.baseline.training, "baseline.training", Training)
        self.finetune: Training = build(config.finetune, "finetune", Training)
        self.network = self._fresh_network()
        self.model = self.network.model
        if config.baseline.checkpoint is not None:  # refused now if it does not fit
            load_state(copy.deepcopy(self.model), config.baseline.checkpoint)
        check_storable(self.model, self.network.pruned)
        determinants = baseline_determinants(self.job.start, self.model)
        with working() as read:
            if self.training or self.finetune:
                check_trained_state(self.model, self.splits.input_size)
        self.baseline = Baseline(
            Path(config.baseline.folder), determinants, self.job.begun.also(read), self.job.seen
        )
        self.checkpoint = Checkpoint(Path(config.checkpoints), self.job.name, self.job.seen)
        check_folder("baseline.folder", self.baseline.folder.parent)
        check_folder("checkpoints", self.checkpoint.folder.parent)
        after_cut = config.after_cut
        self.task = Task(
            self.splits, self.schedule, self.finetune, config.seeds.order, after_cut.recalibrate,
            after_cut.undo_harm,
        )  # fmt: skip
        self.steps = self.task.steps(self.network)
        self._check_controls()
        self.batches = loader(self.splits.score, config.scoring.batch_size)
        self.criteria = {**config.attributions, names.metric: config.metric}
        self.metrics = {name: self._metric(name, self.model) for name in self.criteria}
        self.main = Track(MAIN, self.network, self.metrics[names.metric], self.task)
        scored = list(self.main.players(tuple(self.network.layers)).values())
        for metric in self.metrics.values():
            metric.check(scored, True)
        # refuses a target that no plan can reach; where players take different numbers of units,
        # how many may go depends a little on their order, which only the scores will tell
        if isinstance(self.schedule, ToTarget):
            players = {name: len(group) for name, group in self.network.groups().items()}
            widths = self.network.widths() if self.schedule.coupled != TOGETHER else players
            blank = {name: np.zeros(width) for name, width in widths.items()}
            self.main.plan(blank, self.steps[-1])

    @cached_property
    def client(self) -> tracking.MlflowClient:
        """The tracking store, which is not touched before the experiment runs."""
        return tracking.connect(self.config.tracking.uri)

    @working()
    def run(self) -> float:
        """Do what is not done yet; returns the validation accuracy after the last step.

        It is the job's result, which a sweeper that searches maximises: choices are made on val.
        """
        with self.checkpoint.locked(self._say_who_waits):
            done = None if self.config.force else finished(self.config, self.job)
            accuracy = self._run() if done is None else done
            if ranks.leads():
                self.checkpoint.discard()
        return accuracy

    def dry_run(self) -> str:
        """What ``run`` would do and about what it would take; nothing is written or trained."""
        return DryRun(
            self.config, self.network, self.metrics, self.names.metric, self.steps, self.schedule,
            self.splits, self.training, self.finetune,
        ).text()  # fmt: skip

    def _run(self) -> float:
        """The method."""
        with self._recording() as self.record:
            self.obtain_baseline()
            scored = self._attribute()
            controls = self._controls()  # copies of the baseline, while it is whole
            plans = self._prune(self.main, scored)
            self.record.conclude(self.config.tracking.uri, self._pruned_model())
            for track in controls:
                self._prune(track, scored)
            if self.config.controls.scratch:
                self._train_from_scratch(plans)
            if any(self.config.controls.values()):
                self.record.curves()
            self.record.seen(self.job.seen.by_now())
        return self.record.of(MAIN)[-1]["val_accuracy_after"]

    # -- the stages ---------------------------------------------------------------------------

    def obtain_baseline(self) -> None:
        """The weights that every criterion starts from: trained once, or loaded."""

        def train(model: nn.Module, kept: Epochs) -> None:
            if self.config.baseline.checkpoint is not None:
                load_state(model, self.config.baseline.checkpoint)
            elif not self.config.model.get("weights"):
                label = f"Training {self.names.model} on {self.names.dataset}"
                log.info("%s, %s ...", label, self.training.length)
                optimizer = self.training.optimizer(model)
                order = seeded(self.config.seeds.order, 0)
                fit(model, optimizer, self.splits.train, self.training, order, label, kept)

        new = self.baseline.obtain(self.model, train)
        given = self.config.baseline
        untrained = not self.training and given.checkpoint is None
        state = "as it is built" if untrained else "ready" if new else "found on disk"
        log.info("Baseline %s: %s", self.baseline.name, state)

    def _attribute(self) -> Scored:
        """All wanted criteria on the baseline, kept beside it; returns the chosen one's."""
        found: Estimates = {}
        costs: dict[str, Cost] = {}
        layers = tuple(self.network.layers)
        together = cache(partial(self._score_together, layers))
        for name, settings in self.criteria.items():
            metric = self.metrics[name]
            found[name], costs[name] = self.baseline.scores(
                name,
                plain(settings)
                | plain(self.config.scoring)
                | {
                    "code": digest_of_program(type(metric)),
                    "seed": self.config.seeds.score,
                    "coupled": self.schedule.coupled,
                    "layers": layers,
                },
                lambda name=name, metric=metric: (
                    together()[name]  # type: ignore[misc]
                    if shares_pass(metric)
                    else self._score(self.network, metric, name, layers)
                ),
            )
        self.record.baseline_scores(found, costs)
        return found[self.names.metric], costs[self.names.metric]

    def _prune(self, track: Track, first: Scored) -> list[Plan]:
        """Score, cut, fine-tune, measure, step by step; returns what went at each."""
        plans: list[Plan] = []

        def scored(number: int, found: LayerEstimates) -> None:
            self.record.scores(track.name, number, found)

        kept = self.checkpoint.steps(track.name)
        for step, done in enumerate(track.run(self.steps, self._score_track, first, scored, kept)):
            plans.append(done.plan)
            self._keep_row(track.name, step, done)
            if step and track.name == MAIN and self.config.keep == "all":
                self._keep_model(step, done.stands)
        return plans[1:]

    def _keep_model(self, step: int, stands: bool) -> None:
        """The pruned model after a step, until the run is finished beside its checkpoint."""
        folder = self.checkpoint.folder / f"model-{step:03d}"
        if not (stands or (folder / RECIPE).exists()):
            log.warning("The model after step %d is gone: keep=all was not set then.", step)
            return
        if ranks.leads() and not (folder / RECIPE).exists():
            save_pruned(self.model, folder, self.network.pruner.kept)
        self.record.model(step, folder)

    def _train_from_scratch(self, plans: list[Plan]) -> None:
        """The network that is left, with new weights, trained as the baseline was."""
        network, kept = self._fresh_network(stage=1), self.checkpoint.steps(SCRATCH)
        for plan in plans:
            network.pruner.prune_groups(plan)
        optimizer = self.training.optimizer(network.model)
        done = kept.restore(network, optimizer)
        if not done:
            stages: Stages = {"cut": measure(network, self.splits)}
            started = time.perf_counter()
            label = f"Training what is left of {self.names.model} from scratch"
            log.info("%s, %s ...", label, self.training.length)
            order, epochs = seeded(self.task.order, 0), kept.epochs(0)
            fit(network.model, optimizer, self.splits.train, self.training, order, label, epochs)
            spent = {"finetune_seconds": epochs.seconds + time.perf_counter() - started}
            stages["after"] = measure(network, self.splits)
            done = [done_of(network, {}, stages, spent)]
            kept.keep(done, network, optimizer)
        self._keep_row(SCRATCH, len(plans), done[0])

    # -- what the stages ask ------------------------------------------------------------------

    def _controls(self) -> list[Track]:
        """The same steps on copies that are not repaired, where they are wanted and other."""
        wanted = self.config.controls
        tasks = controls(self.task, self.network, wanted.untuned, wanted.stale)
        if wanted.stale and not with_statistics(self.network.model):
            log.info("There is no stale track: the network has no BatchNorm with statistics.")
        networks = {name: self.network.copy() for name in tasks}
        return [
            Track(name, networks[name], self._metric(self.names.metric, networks[name].model), task)
            for name, task in tasks.items()
        ]

    def _score_track(self, track: Track, layers: tuple[str, ...]) -> Scored:
        return self._score(track.network, track.metric, self.names.metric, layers)

    def _score(
        self, network: Network, metric: AttributionMetric, name: str, layers: tuple[str, ...]
    ) -> Scored:
        """Scores behind BatchNorm and non-linearity, and what they took."""
        players = network.players(layers, self.schedule.coupled)
        what = layers_in_words(players)
        log.info("Scoring %s by %s (%s) ...", what, name, self._settings(name))
        behind = network.work_behind()
        bar = ScoringBar(name, [behind.get(each, 1) for each in players])
        seeded(self.config.seeds.score, 0)  # for criteria that draw from the shared streams
        with bar, measured(self.device) as cost:
            found = metric.estimate(list(players.values()), True, bar)
        return dict(zip(players, found, strict=True)), cost

    def _score_together(self, layers: tuple[str, ...]) -> dict[str, Scored]:
        """All criteria on activations and gradients by one pass; each is said to take all of it."""
        metrics = {name: each for name, each in self.metrics.items() if shares_pass(each)}
        players = self.network.players(layers, self.schedule.coupled)
        what = layers_in_words(players)
        log.info("Scoring %s by %s in one pass ...", what, ", ".join(metrics))
        seeded(self.config.seeds.score, 0)
        with measured(self.device) as cost:
            found = run_together(list(metrics.values()), list(players.values()), True)
        return {
            name: (dict(zip(players, scores, strict=True)), cost)
            for name, scores in zip(metrics, found, strict=True)
        }

    def _recording(self) -> AbstractContextManager[Rows]:
        """The record of this run: of an earlier try, where that was cut off, or a new one."""
        if not ranks.leads():
            return nullcontext(Rows())
        forced = self.config.force
        token = self.checkpoint.begun(forced)
        if token is None:
            about = {"of": vars(self.names), "start": self.job.start}
            token = self.checkpoint.begin(forced, about)
        else:
            log.info("Going on where an earlier try was cut off (%s)", self.checkpoint.folder)
        labels = tags(self.config, self.names, self.baseline)
        labels |= {tracking.IDENTITY: self.job.name, tracking.CHECKPOINT: token}
        return recording(self.client, self.config, self.names, labels, self.output, self.overrides)

    def _pruned_model(self) -> Path | None:
        """Where the pruned model was saved; None where it is not to be kept."""
        if self.config.keep == "none":
            return None
        folder = self.output / "pruned_model"
        if ranks.leads():
            save_pruned(self.model, folder, self.network.pruner.kept)
        return folder

    def _say_who_waits(self) -> None:
        log.info("Another process runs this configuration (%s): waiting", self.checkpoint.folder)

    def _keep_row(self, track: str, step: int, done: Done) -> None:
        """Write one step down, and say it."""
        if ranks.leads():
            self.checkpoint.note()
        row = done.row
        self.record.row(track, step, row, done.test)
        log.info(
            "Step %d of %d%s: %.1f %% of the FLOPs gone, test accuracy %s, validation accuracy "
            "%.2f %%", step, len(self.steps), "" if track == MAIN else f", {track}",
            100 * row["removed_flops"], _story(row, "training" if track == SCRATCH else
            "fine-tuning"), 100 * row["val_accuracy_after"],
        )  # fmt: skip

    def _settings(self, name: str) -> str:
        settings = plain(self.criteria[name]).items()
        shown = {k: v for k, v in settings if not (k.startswith("_") or v is None)}
        return ", ".join(f"{key}={value}" for key, value in shown.items())

    # -- what is built, and refused before any work starts -------------------------------------

    def _fresh_network(self, stage: int = 0) -> Network:
        """The unpruned network with weights as they are drawn; every ``stage`` draws others."""
        config = self.config
        init = config.seeds.init
        model = fresh_model(config.model, self.splits, init if stage == 0 else seed_of(init, stage))
        if stage == 0 and digest_of_network(model) != self.job.start["network"]:
            raise UserError(
                f"model={config.model._target_} gives another network each time it is built from "
                "the same seed. Draw its weights from torch's, numpy's or Python's own stream, and "
                "leave the files that it reads alone while it runs."
            )
        model = model.to(self.device)
        rescale = config.after_cut.rescale_dropout
        return Network(model, self.splits.input_size, self.device, rescale)

    def _check_controls(self) -> None:
        given = self.config.baseline.checkpoint is not None or self.config.model.get("weights")
        if self.config.controls.scratch and (given or not self.training):
            raise UserError(
                "controls.scratch=true trains what is left as the baseline was trained, and this "
                "baseline is not: set baseline.training.epochs, without baseline.checkpoint and "
                "model.weights."
            )

    def _metric(self, name: str, model: nn.Module) -> AttributionMetric:
        settings = self.criteria[name]
        if settings.get("reduction") == "none":
            raise UserError("metric.reduction=none gives no ranking; choose mean, for example.")
        hides_sign = settings.get("reduction") in ("mean_abs", "mean_plus_2_std")
        if hides_sign and isinstance(self.schedule, NegativeScores) and name == self.names.metric:
            raise UserError(
                f"metric.reduction={settings.reduction} leaves hardly a score below 0, and "
                "schedule=negative_scores removes those below 0. Give metric.reduction=mean."
            )
        make = build(settings, "metric")
        try:
            with watching():
                return make(model, self.batches, F.cross_entropy, self.device)
        except TypeError as error:
            reason = str(error).replace(".__init__()", "()").rstrip(".")
            raise UserError(f"metric: {reason}.") from error


def _story(row: Row, training: str) -> str:
    """``37.78 % after the cut, 97.22 % recalibrated, 97.50 % after fine-tuning``."""
    told = [f"{100 * row['test_accuracy_cut']:.2f} %"]
    if row.get("recalibrate_seconds"):
        told.append(f"{100 * row['test_accuracy_before']:.2f} % recalibrated")
    if row.get("finetune_kept") == 0:
        told.append(f"{training} undone")
    elif row.get("finetune_seconds"):
        told.append(f"{100 * row['test_accuracy_after']:.2f} % after {training}")
    if len(told) > 1:
        told[0] += " after the cut"
    return ", ".join(told)
