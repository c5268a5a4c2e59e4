"""Criteria compared on networks of your own, without configuration files and without MLflow."""

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from pruning_lab.attributions import AttributionMetric
from pruning_lab.datasets import Splits, loader
from pruning_lab.errors import UserError
from pruning_lab.experiment.conditions import Conditions, Measured
from pruning_lab.experiment.network import Network
from pruning_lab.experiment.pruning_run import NullRecorder, PruningRun, Scored, StepResult, prune
from pruning_lab.experiment.scoring import score
from pruning_lab.pruning.schedules import Schedule
from pruning_lab.records.step import MAIN
from pruning_lab.runtime.random_streams import seeded, streams_kept
from pruning_lab.tasks import Classification, Task
from pruning_lab.tasks.task import Pairs
from pruning_lab.training.recipe import Training

Criterion = Callable[..., AttributionMetric]
"""Called as ``criterion(model, batches, loss, device)``: a class, or a partial of one."""

Also = Callable[[PruningRun, int, StepResult], Mapping[str, Any]]
"""Called as ``also(run, step, result)`` after each step of a track; gives more columns."""


def compare_criteria(
    baselines: nn.Module | Sequence[nn.Module],
    splits: Splits,
    criteria: Mapping[str, Criterion],
    schedule: Schedule,
    finetune: Training | Mapping[str, Training],
    *,
    untuned: bool = True,
    stale: bool = False,
    recalibrate: int = 1000,
    undo_harm: bool = True,
    every_stage: bool = True,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    seeds: Sequence[int] | None = None,
    task: Task | None = None,
    also: Also = lambda run, step, result: {},
) -> pd.DataFrame:
    """Prune a copy of every baseline by every criterion; one row a run, track and step.

    The frame has the columns of ``read_runs``: ``quality_curves``, ``measure_runs``, ``sections``
    of ``pruning_lab.compare`` take it as it is. ``baselines`` are trained networks of one
    architecture, which stay as they are; several of them are the blocks of the comparison. Criteria
    draw with the seeds that they were given.

    Args:
        baselines: the network, or the networks.
        splits: the data set, as the networks were trained on.
        criteria: by the name that their rows have.
        schedule: what is removed at each step.
        finetune: the training after each cut, or several by name: each is a run of its own, with
            the name in its column ``finetune`` (keep one for figures), from the same first scores.
        untuned: prune a copy without fine-tuning, too.
        stale: prune a copy without fine-tuning and recalibration, too.
        recalibrate: number of training samples from which BatchNorm's statistics are recomputed
            after a cut; 0: they are kept.
        undo_harm: undo fine-tuning that does not improve the primary measure on val.
        every_stage: measure right after the cut and before fine-tuning, too; without it a step is
            measured at its end only, which is faster, and the columns of other stages have gaps.
        batch_size: how many samples are scored at a time.
        device: where all runs.
        seeds: of the order of the training data, another for each baseline; 0, 1, 2 ... by default.
        task: what the networks are for; classification by default.
        also: measures more at each step.

    Raises:
        UserError: for no baseline or criterion, for ``undo_harm`` without ``every_stage``, which it
            compares, for invalid splits, and for what cannot be pruned or scored.
    """
    given = [baselines] if isinstance(baselines, nn.Module) else list(baselines)
    orders = list(range(len(given)) if seeds is None else seeds)
    task, device = task or Classification(), torch.device(device)
    if isinstance(finetune, Training):
        finetune = {"sgd" if finetune else "none": finetune}
    _check(given, splits, criteria, orders, task, finetune)
    batches = Pairs(task, loader(splits.score, batch_size))
    about = {
        "model": type(given[0]).__name__, "dataset": "given", "schedule": type(schedule).__name__,
        "setting": "", "metric_settings": "{}", **task.primary.recorded(),
    }  # fmt: skip
    rows: list[dict[str, Any]] = []
    bar = tqdm(total=len(given) * len(criteria), desc="Comparing", disable=None)
    with streams_kept([device]), bar:  # training seeds them
        for seed, model in zip(orders, given, strict=True):
            base = Network(copy.deepcopy(model).to(device), splits.input_size, device)
            tracks: dict[str, dict[str, Conditions]] = {}
            for recipe, training in finetune.items():
                main = Conditions(
                    task, splits, schedule, training, seed, recalibrate, undo_harm, every_stage
                )
                tracks[recipe] = {MAIN: main, **main.controls(base, untuned, stale)}
            whole = main.measure(base)
            for name, criterion in criteria.items():
                head = {"metric": name, "seed": seed, "baseline": str(seed), "block": str(seed)}
                for recipe, row in _pruned(base, whole, criterion, batches, tracks, also):
                    this = {"run_id": f"{name}-{recipe}-{seed}", "finetune": recipe}
                    rows.append({**this, **head, **about, **row})
                bar.update()
    return pd.DataFrame(rows)


def _check(
    baselines: Sequence[nn.Module],
    splits: Splits,
    criteria: Collection[str],
    seeds: Sequence[int],
    task: Task,
    finetune: Collection[str],
) -> None:
    """Raise UserError for what cannot be compared."""
    count = len(baselines)
    if not (baselines and criteria and finetune):
        raise UserError(
            f"There are {count} baselines, {len(criteria)} criteria and {len(finetune)} ways of "
            "fine-tuning to compare; one of each is needed."
        )
    if not len(set(seeds)) == len(seeds) == count:
        raise UserError(
            f"seeds={seeds} are not possible for {count} baselines: give each one its own."
        )
    splits.fingerprint()
    for model in baselines:
        task.check(model, splits)


class _Rows(NullRecorder):
    """The rows of a track, with the columns that ``also`` gives."""

    def __init__(self, also: Also) -> None:
        self.rows: list[dict[str, Any]] = []
        self._also = also

    def step(self, run: PruningRun, number: int, result: StepResult) -> None:
        own = {"track": run.name, "step": number, **result.record.row()}
        self.rows.append(own | dict(self._also(run, number, result)))


def _pruned(
    base: Network,
    whole: Measured,
    criterion: Criterion,
    batches: Pairs,
    tracks: Mapping[str, Mapping[str, Conditions]],
    also: Also,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of all recipes and their tracks from one baseline, which is scored once.

    ``whole`` is what was measured of the baseline. Tracks that are the same for several recipes
    (most controls are) are run once.
    """
    first: Scored | None = None
    known: list[tuple[str, Conditions, list[dict[str, Any]]]] = []
    for recipe, by_track in tracks.items():
        for name, own in by_track.items():
            rows = next((rows for *key, rows in known if key == [name, own]), None)
            if rows is None:
                network, recorder = base.copy(), _Rows(also)
                metric = criterion(network.model, batches, own.task.criterion, base.pruner.device)
                run = PruningRun(name, network, metric, own)
                if first is None:
                    seeded(own.order, 0)  # for criteria that draw from the shared streams
                    first = _score(run, tuple(network.layers))
                prune(run, _score, first, recorder=recorder, whole=whole)
                known.append((name, own, rows := recorder.rows))
            yield from ((recipe, row) for row in rows)


def _score(run: PruningRun, layers: tuple[str, ...]) -> Scored:
    return score(run.metric, run.unit_groups(layers), run.network.pruner.device)
