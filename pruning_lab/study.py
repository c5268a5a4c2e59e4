"""Criteria compared on networks of your own, without configuration files and without MLflow."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from pruning_lab.attributions import AttributionMetric
from pruning_lab.datasets import Splits, loader
from pruning_lab.errors import UserError
from pruning_lab.ledger import measured
from pruning_lab.network import Network
from pruning_lab.random_streams import streams_kept
from pruning_lab.schedules import Schedule
from pruning_lab.setup import check_outputs
from pruning_lab.track import (
    MAIN,
    Done,
    Measured,
    Row,
    Scored,
    Task,
    Track,
    controls,
    measure,
    seeded,
)
from pruning_lab.training import Training

LOSS = F.cross_entropy

Criterion = Callable[..., AttributionMetric]
"""Called as ``criterion(model, batches, loss, device)``: a class, or a partial of one."""

Also = Callable[[Track, int, Done], Mapping[str, Any]]
"""Called as ``also(track, step, done)`` after each step of a track; gives more columns."""


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
    also: Also = lambda track, step, done: {},
) -> pd.DataFrame:
    """Prune a copy of every baseline by every criterion; one row a run, track and step.

    The frame has the columns of ``read_runs``: ``accuracy_curves``, ``measure_runs``, ``sections``
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
        recalibrate: from how many training samples BatchNorm's statistics are made anew after a
            cut; 0 for not at all.
        undo_harm: undo fine-tuning that does not improve the validation accuracy.
        every_stage: measure right after the cut and before fine-tuning, too; without it a step is
            measured at its end only, which is faster, and the columns of other stages have gaps.
        batch_size: how many samples are scored at a time.
        device: where all runs.
        seeds: of the order of the training data, another for each baseline; 0, 1, 2 ... by default.
        also: measures more at each step.

    Raises:
        UserError: for no baseline or criterion, for ``undo_harm`` without ``every_stage``, which it
            compares, for splits with samples that are none of theirs or
            of another split, and for what cannot be pruned or scored.
    """
    given = [baselines] if isinstance(baselines, nn.Module) else list(baselines)
    if not given or not criteria:
        raise UserError(
            f"There are {len(given)} baselines and {len(criteria)} criteria to compare."
        )
    orders = list(range(len(given)) if seeds is None else seeds)
    if len(set(orders)) != len(given) or len(orders) != len(given):
        raise UserError(
            f"seeds={orders} are not possible for {len(given)} baselines: give each one its own."
        )
    splits.fingerprint()
    for model in given:
        check_outputs(model, splits)
    recipes = finetune
    if isinstance(recipes, Training):
        recipes = {"sgd" if recipes else "none": recipes}
    about = {
        "model": type(given[0]).__name__, "dataset": "given", "schedule": type(schedule).__name__,
        "setting": "", "metric_settings": "{}",
    }  # fmt: skip
    batches, device = loader(splits.score, batch_size), torch.device(device)
    rows: list[dict[str, Any]] = []
    measured_once: dict[int, Measured] = {}
    runs = list(product(zip(orders, given, strict=True), criteria.items()))
    with streams_kept([device]):  # training seeds them
        for (seed, model), (name, criterion) in tqdm(runs, "Comparing", disable=None):
            base = Network(copy.deepcopy(model).to(device), splits.input_size, device)
            tasks: dict[str, dict[str, Task]] = {}
            for recipe, training in recipes.items():
                task = Task(splits, schedule, training, seed, recalibrate, undo_harm, every_stage)
                tasks[recipe] = {MAIN: task} | controls(task, base, untuned, stale)
            head = {"metric": name, "seed": seed, "baseline": str(seed), "block": str(seed)}
            whole = measured_once[seed] = measured_once.get(seed) or measure(base, splits)
            for recipe, row in _pruned(base, whole, criterion, batches, tasks, also):
                own = {"run_id": f"{name}-{recipe}-{seed}", "finetune": recipe}
                rows.append({**own, **head, **about, **row})
    return pd.DataFrame(rows)


def _pruned(
    base: Network,
    whole: Measured,
    criterion: Criterion,
    batches: DataLoader,
    tasks: Mapping[str, Mapping[str, Task]],
    also: Also,
) -> Iterator[tuple[str, Row]]:
    """The rows of all recipes and their tracks from one baseline, which is scored once.

    ``whole`` is what was measured of it.

    Tracks that are the same for several recipes (most controls are) are run once.
    """
    first: Scored | None = None
    known: list[tuple[str, Task, list[Row]]] = []
    for recipe, tracks in tasks.items():
        for name, task in tracks.items():
            rows = next((rows for *key, rows in known if key == [name, task]), None)
            if rows is not None:
                yield from ((recipe, row) for row in rows)
                continue
            known.append((name, task, rows := []))
            network = base.copy()
            metric = criterion(network.model, batches, LOSS, base.pruner.device)
            track = Track(name, network, metric, task)
            if first is None:
                seeded(task.order, 0)  # for criteria that draw from the shared streams
                first = _score(track, tuple(network.layers))
            steps = enumerate(track.run(task.steps(network), _score, first, whole=whole))
            for step, done in steps:
                row = {"track": name, "step": step, **done.row, **also(track, step, done)}
                rows.append(row)
                yield recipe, row


def _score(track: Track, layers: tuple[str, ...]) -> Scored:
    """Scores behind BatchNorm and non-linearity, and what they took."""
    players = track.players(layers)
    with measured(track.network.pruner.device) as cost:
        found = track.metric.estimate(list(players.values()), True)
    return dict(zip(players, found, strict=True)), cost
