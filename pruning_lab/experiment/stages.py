"""The stages of an experiment; each skips itself where its result is kept from an earlier try."""

import logging
import time
from functools import cache, partial
from pathlib import Path

from torch import nn

from pruning_lab.attributions.estimation.scores import Estimates
from pruning_lab.attributions.evidence.activations import shares_pass
from pruning_lab.config.build import plain
from pruning_lab.experiment.pruning_run import PruningRun, Scored, StepResult, prune, result_of
from pruning_lab.experiment.recorder import RunRecorder
from pruning_lab.experiment.resume import DiskStepStore
from pruning_lab.experiment.scoring import score_network, score_together, settings_in_words
from pruning_lab.experiment.setup import Setup, fresh_network
from pruning_lab.profiling.passes import ScoringCost
from pruning_lab.provenance.source_code import digest_of_program
from pruning_lab.pruner.saved_model import load_state, save_pruned
from pruning_lab.pruning.plan import Plan
from pruning_lab.records.step import SCRATCH
from pruning_lab.runtime import distributed
from pruning_lab.runtime.random_streams import seeded
from pruning_lab.training.fit import NullEpochStore, fit
from pruning_lab.training.recalibration import with_statistics

log = logging.getLogger(__name__)


def obtain_baseline(setup: Setup) -> None:
    """Give the network the weights that every criterion starts from: trained once, or loaded."""
    settings, training = setup.settings, setup.training

    def train(model: nn.Module, epochs: NullEpochStore) -> None:
        if settings.checkpoint is not None:
            load_state(model, settings.checkpoint)
        elif not settings.given_weights:
            label = f"Training {setup.names.model} on {setup.names.dataset}"
            log.info("%s, %s ...", label, training.length)
            optimizer, order = training.optimizer(model), seeded(settings.seeds.order, 0)
            train_split = setup.splits.train
            fit(model, optimizer, train_split, training, setup.task, order, label, epochs)

    new = setup.baseline.obtain(setup.network.model, train)
    untrained = not training and settings.checkpoint is None
    state = "as it is built" if untrained else "ready" if new else "found on disk"
    log.info("Baseline %s: %s", setup.baseline.name, state)


def score_baseline(setup: Setup, recorder: RunRecorder) -> Scored:
    """Score the baseline by all criteria, kept beside it; returns the chosen one's scores."""
    estimates: Estimates = {}
    costs: dict[str, ScoringCost] = {}
    network, seed = setup.network, setup.settings.seeds.score
    layers, coupled = tuple(network.layers), setup.schedule.coupled
    unit_groups = network.unit_groups(layers, coupled)
    sharing = {name: metric for name, metric in setup.metrics.items() if shares_pass(metric)}
    together = cache(partial(score_together, sharing, unit_groups, seed, setup.device))
    for name, metric in setup.metrics.items():
        own = settings_in_words(setup.criteria[name])
        alone = partial(score_network, metric, network, unit_groups, seed, name, own)
        depends_on = {
            **plain(setup.criteria[name]), **plain(setup.config.scoring),
            "code": digest_of_program(type(metric)), "seed": seed, "coupled": coupled,
            "layers": layers,
        }  # fmt: skip
        score = (lambda name=name: together()[name]) if name in sharing else alone
        estimates[name], costs[name] = setup.baseline.scores(name, depends_on, score)
    recorder.baseline_scores(estimates, costs)
    return estimates[setup.names.metric], costs[setup.names.metric]


def control_runs(setup: Setup) -> list[PruningRun]:
    """Return the requested control tracks, on copies of the network, where they differ."""
    wanted, network = setup.settings.controls, setup.network
    conditions = setup.conditions.controls(network, wanted.untuned, wanted.stale)
    if wanted.stale and not with_statistics(network.model):
        log.info("There is no stale track: the network has no BatchNorm with statistics.")
    return [setup.run_of(track, network.copy(), own) for track, own in conditions.items()]


def prune_run(
    setup: Setup, run: PruningRun, first: Scored, recorder: RunRecorder
) -> list[StepResult]:
    """Prune one track from the baseline's scores on."""
    name = setup.names.metric
    own = settings_in_words(setup.criteria[name])

    def score(run: PruningRun, layers: tuple[str, ...]) -> Scored:
        seed = setup.settings.seeds.score
        return score_network(run.metric, run.network, run.unit_groups(layers), seed, name, own)

    store = DiskStepStore(setup.checkpoint.folder, run.name)
    return prune(run, score, first, store, recorder)


def train_from_scratch(setup: Setup, plans: list[Plan], recorder: RunRecorder) -> None:
    """Train the network that is left, with new weights, as the baseline was trained."""
    network = fresh_network(setup.config, setup, stage=1)
    store = DiskStepStore(setup.checkpoint.folder, SCRATCH)
    for plan in plans:
        network.pruner.prune_groups(plan)
    training, task = setup.training, setup.task
    optimizer = training.optimizer(network.model)
    results = store.restore(network, optimizer)
    if not results:
        stages = {"cut": setup.conditions.measure(network)}
        started = time.perf_counter()
        label = f"Training what is left of {setup.names.model} from scratch"
        log.info("%s, %s ...", label, training.length)
        order, epochs = seeded(setup.conditions.order, 0), store.epochs(0)
        fit(network.model, optimizer, setup.splits.train, training, task, order, label, epochs)
        seconds = epochs.seconds + time.perf_counter() - started
        stages["after"] = setup.conditions.measure(network)
        results = [result_of(network, {}, stages, finetune_seconds=seconds)]
        store.keep(results, network, optimizer)
    recorder.record(SCRATCH, len(plans), results[0])


def save_model(setup: Setup, output: Path) -> Path | None:
    """Save the pruned model; returns its folder, None where it is not to be kept."""
    if setup.settings.keep == "none":
        return None
    folder = output / "pruned_model"
    if distributed.leads():
        save_pruned(setup.network.model, folder, setup.network.pruner.kept)
    return folder
