"""Build the parts of an experiment from its configuration; what is impossible is refused here."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import nn
from torch.utils.data import Subset

from pruning_lab.attributions import AttributionMetric
from pruning_lab.config.build import build
from pruning_lab.config.sections import Names, Settings
from pruning_lab.datasets import loader
from pruning_lab.errors import UserError
from pruning_lab.experiment.baseline import Baseline
from pruning_lab.experiment.conditions import Conditions
from pruning_lab.experiment.fingerprint import (
    Job,
    baseline_determinants,
    digest_of_network,
    fresh_model,
    identify,
)
from pruning_lab.experiment.network import Network
from pruning_lab.experiment.pruning_run import PruningRun
from pruning_lab.experiment.rehearsal import check_storable, check_trained_state
from pruning_lab.experiment.resume import Checkpoint
from pruning_lab.provenance.environment import working
from pruning_lab.provenance.inputs_read import watching
from pruning_lab.pruner.saved_model import load_state
from pruning_lab.pruning.schedules import TOGETHER, NegativeScores, Schedule, Step, ToTarget
from pruning_lab.records.step import MAIN
from pruning_lab.runtime.files import check_folder
from pruning_lab.runtime.random_streams import seed_of
from pruning_lab.tasks.task import LOSS, Pairs, Task
from pruning_lab.training.evaluation import evaluate
from pruning_lab.training.recipe import Training


@dataclass(frozen=True)
class Setup(Job):
    """A job with all its parts, checked and ready for work.

    Args:
        config: the whole configuration, as it is recorded.
        names: of the chosen groups.
        network: the unpruned network.
        criteria: the settings of all criteria that score the baseline, by name.
        metrics: the criteria themselves, on the network's model.
        batches: what they score on.
        conditions: common to all criteria.
        steps: the schedule's steps for the network.
        baseline: where the trained network is kept.
        checkpoint: where the unfinished run is kept.
    """

    config: DictConfig
    names: Names
    network: Network
    criteria: Mapping[str, DictConfig]
    metrics: Mapping[str, AttributionMetric]
    batches: Pairs
    conditions: Conditions
    steps: list[Step]
    baseline: Baseline
    checkpoint: Checkpoint

    def run_of(self, track: str, network: Network, conditions: Conditions) -> PruningRun:
        """Return the pruning of a network by the chosen criterion."""
        chosen = self.names.metric
        if network is self.network:
            metric = self.metrics[chosen]
        else:
            metric = build_metric(
                self.criteria[chosen], network.model, self.batches, self.task, self.device
            )
        return PruningRun(track, network, metric, conditions)


@working()
def set_up(config: DictConfig, names: Names) -> Setup:
    """Build and check everything that an experiment needs before any work starts.

    Raises UserError for what cannot be built, pruned, scored, or kept.
    """
    job = identify(config)
    torch.set_num_threads(job.threads)
    settings = job.settings
    network = fresh_network(config, job)
    if settings.checkpoint is not None:  # refused now if it does not fit
        load_state(copy.deepcopy(network.model), settings.checkpoint)
    baseline = _baseline(job, network)
    checkpoint = Checkpoint(Path(settings.checkpoints), job.name, job.seen)
    check_folder("baseline.folder", baseline.folder.parent)
    check_folder("checkpoints", checkpoint.folder.parent)
    conditions = Conditions(
        job.task, job.splits, job.schedule, job.finetune, settings.seeds.order,
        settings.after_cut.recalibrate, settings.after_cut.undo_harm,
    )  # fmt: skip
    _check_controls(settings, job.training)
    batches = Pairs(job.task, loader(job.splits.score, settings.batch_size))
    criteria = {**config.attributions, names.metric: config.metric}
    _check_sign(criteria[names.metric], job.schedule)
    metrics = {
        name: build_metric(each, network.model, batches, job.task, job.device)
        for name, each in criteria.items()
    }
    setup = Setup(
        **vars(job), config=config, names=names, network=network, criteria=criteria,
        metrics=metrics, batches=batches, conditions=conditions, steps=conditions.steps(network),
        baseline=baseline, checkpoint=checkpoint,
    )  # fmt: skip
    _check_scores_and_target(setup)
    _check_measures(setup)
    return setup


def _check_measures(setup: Setup) -> None:
    """Raise UserError for a task that does not return a measure that it declares."""
    few = Subset(setup.splits.val, range(min(64, len(setup.splits.val))))  # type: ignore[arg-type]
    values = evaluate(setup.network.model, few, setup.task).values
    missing = [each.name for each in setup.task.measures if each.name not in values]
    if missing or LOSS.name not in values:
        raise UserError(
            f"{type(setup.task).__name__}.measure gives {', '.join(values)}, without "
            f"{', '.join(missing) or LOSS.name}: it must give every measure, and the loss."
        )


def build_metric(
    settings: DictConfig,
    model: nn.Module,
    batches: Pairs,
    task: Task,
    device: torch.device,
    group: str = "metric",
) -> AttributionMetric:
    """Build a criterion on a model; raises UserError for settings that give no ranking."""
    if settings.get("reduction") == "none":
        raise UserError(f"{group}.reduction=none gives no ranking; choose mean, for example.")
    make = build(settings, group)
    try:
        with watching():
            metric: AttributionMetric = make(model, batches, task.criterion, device)
    except TypeError as error:
        reason = str(error).replace(".__init__()", "()").rstrip(".")
        raise UserError(f"{group}: {reason}.") from error
    return metric


def fresh_network(config: DictConfig, job: Job, stage: int = 0) -> Network:
    """Return the unpruned network with weights as they are drawn; every ``stage`` draws others.

    Raises UserError if stage 0, the start of the baseline, is not the same each time.
    """
    init = job.settings.seeds.init
    seed = init if stage == 0 else seed_of(init, stage)
    model = fresh_model(config.model, job.splits, job.task, seed)
    if stage == 0 and digest_of_network(model) != job.start["network"]:
        raise UserError(
            f"model={config.model._target_} gives another network each time it is built from "
            "the same seed. Draw its weights from torch's, numpy's or Python's own stream, and "
            "leave the files that it reads alone while it runs."
        )
    rescale = job.settings.after_cut.rescale_dropout
    return Network(model.to(job.device), job.splits.input_size, job.device, rescale)


def _baseline(job: Job, network: Network) -> Baseline:
    """Return the folder of the trained network; UserError if the network cannot be kept."""
    check_storable(network.model, network.pruned)
    determinants = baseline_determinants(job.start, network.model)
    with working() as read:
        if job.training or job.finetune:
            check_trained_state(network.model, job.splits.input_size)
    return Baseline(Path(job.settings.folder), determinants, job.begun.also(read), job.seen)


def _check_controls(settings: Settings, training: Training) -> None:
    if settings.controls.scratch and (settings.given_weights or not training):
        raise UserError(
            "controls.scratch=true trains what is left as the baseline was trained, and this "
            "baseline is not: set baseline.training.epochs, without baseline.checkpoint and "
            "model.weights."
        )


def _check_sign(metric: DictConfig, schedule: Schedule) -> None:
    """UserError for a schedule by sign with a reduction that removes the sign."""
    hides_sign = metric.get("reduction") in ("mean_abs", "mean_plus_2_std")
    if hides_sign and isinstance(schedule, NegativeScores):
        raise UserError(
            f"metric.reduction={metric.reduction} leaves hardly a score below 0, and "
            "schedule=negative_scores removes those below 0. Give metric.reduction=mean."
        )


def _check_scores_and_target(setup: Setup) -> None:
    """UserError for a layer that a criterion cannot score, or a target that no plan can reach."""
    network, schedule = setup.network, setup.schedule
    main = setup.run_of(MAIN, network, setup.conditions)
    scored = list(main.unit_groups(tuple(network.layers)).values())
    for metric in setup.metrics.values():
        metric.check(scored, True)
    if not isinstance(schedule, ToTarget):
        return
    # where unit groups have different numbers of units, how many may be removed depends a little on
    # their order, which only the scores will tell
    unit_groups = {name: len(group) for name, group in network.groups().items()}
    widths: Mapping[str, int] = unit_groups if schedule.coupled == TOGETHER else network.widths()
    blank: dict[str, Any] = {name: np.zeros(width) for name, width in widths.items()}
    main.choose(blank, setup.steps[-1])
