"""Criteria compared on networks of your own, without configuration files and without MLflow."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from pruning_lab.attributions import AttributionMetric
from pruning_lab.datasets import Splits, loader
from pruning_lab.errors import UserError
from pruning_lab.ledger import measured
from pruning_lab.network import Network
from pruning_lab.random_streams import streams_kept
from pruning_lab.schedules import Schedule
from pruning_lab.setup import check_outputs
from pruning_lab.track import MAIN, Row, Scored, Task, Track, controls
from pruning_lab.training import Training

LOSS = F.cross_entropy

Criterion = Callable[..., AttributionMetric]
"""Called as ``criterion(model, batches, loss, device)``: a class, or a partial of one."""


def compare_criteria(
    baselines: nn.Module | Sequence[nn.Module],
    splits: Splits,
    criteria: Mapping[str, Criterion],
    schedule: Schedule,
    finetune: Training,
    *,
    untuned: bool = True,
    stale: bool = False,
    recalibrate: int = 1000,
    undo_harm: bool = True,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
) -> pd.DataFrame:
    """Prune a copy of every baseline by every criterion; one row a run, track and step.

    The frame has the columns of ``read_runs``: ``accuracy_curves``, ``measure_runs``, ``sections``
    of ``pruning_lab.compare`` take it as it is. ``baselines`` are trained networks of one
    architecture, which stay as they are; several of them are the blocks of the comparison. The i-th
    one's training data come in the order of seed i; criteria draw with the seeds that they were
    given. After every cut BatchNorm's statistics are made anew from ``recalibrate`` training
    samples, and with ``undo_harm`` fine-tuning that does not improve the validation accuracy is
    undone. With ``untuned`` each is pruned without fine-tuning, too, and with ``stale`` without
    both.

    Raises:
        UserError: for no baseline or criterion, for splits with samples that are none of theirs or
            of another split, and for what cannot be pruned or scored.
    """
    given = [baselines] if isinstance(baselines, nn.Module) else list(baselines)
    if not given or not criteria:
        raise UserError(
            f"There are {len(given)} baselines and {len(criteria)} criteria to compare."
        )
    splits.fingerprint()
    for model in given:
        check_outputs(model, splits)
    about = {
        "model": type(given[0]).__name__, "dataset": "given", "schedule": type(schedule).__name__,
        "finetune": "sgd" if finetune else "none", "setting": "", "metric_settings": "{}",
    }  # fmt: skip
    batches, device = loader(splits.score, batch_size), torch.device(device)
    rows: list[dict[str, Any]] = []
    runs = tqdm(list(product(enumerate(given), criteria.items())), "Comparing", disable=None)
    with streams_kept([device]):  # training seeds them
        for (seed, model), (name, criterion) in runs:
            head = {"run_id": f"{name}-{seed}", "metric": name, "seed": seed}
            head |= {"baseline": str(seed), "block": str(seed)}
            task = Task(splits, schedule, finetune, seed, recalibrate, undo_harm)
            main = Network(copy.deepcopy(model).to(device), splits.input_size, device)
            tasks = {MAIN: task} | controls(task, main, untuned, stale)
            networks = {name: main if name == MAIN else main.copy() for name in tasks}
            tracks = [
                Track(name, own, criterion(own.model, batches, LOSS, device), tasks[name])
                for name, own in networks.items()
            ]
            rows += [{**head, **about, **row} for row in _followed(tracks)]
    return pd.DataFrame(rows)


def _followed(tracks: Sequence[Track]) -> Iterator[Row]:
    """The rows of tracks from one baseline, which is scored once."""
    first = _score(tracks[0], tuple(tracks[0].network.layers))
    for track in tracks:
        steps = track.task.steps(track.network)
        found = enumerate(track.run(steps, _score, first))
        yield from ({"track": track.name, "step": k} | done.row for k, done in found)


def _score(track: Track, layers: tuple[str, ...]) -> Scored:
    """Scores behind BatchNorm and non-linearity, and what they took."""
    players = track.players(layers)
    with measured(track.network.pruner.device) as cost:
        found = track.metric.estimate(list(players.values()), True)
    return dict(zip(players, found, strict=True)), cost
