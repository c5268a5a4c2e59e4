"""Measure how much of the result 500 labelled pictures explain, by two controls, on one thread.

    python -m experiments.untrained_networks.controls    # the same command again resumes

The networks and pictures are those of the experiment. Every network is pruned again by scores on
the scoring pictures with their true labels and with permuted ones, and the test pictures are
classified by the nearest class mean of the scoring pictures. Writes controls.csv.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig
from torch import nn
from torch.utils.data import Dataset
from tqdm import tqdm

from pruning_lab.config.build import build
from pruning_lab.datasets import Images, Splits, loader
from pruning_lab.experiment.conditions import Conditions
from pruning_lab.experiment.fingerprint import fresh_model
from pruning_lab.experiment.network import Network
from pruning_lab.experiment.parts import build_data
from pruning_lab.pruning.schedules import Schedule
from pruning_lab.runtime.files import replacing
from pruning_lab.tasks import Classification
from pruning_lab.training.evaluation import evaluate
from pruning_lab.training.recipe import Training

TASK = Classification()

TABLE = Path(__file__).with_name("controls.csv")
SEEDS = range(5)
DRAWS = 5
"""Permutations of the labels for each network."""

PIXELS, FEATURES = "nearest mean, pixels", "nearest mean, features"
PERMUTED, TRUE = "permuted labels", "true labels"
CONTROLS = (PIXELS, FEATURES, PERMUTED, TRUE)

Rows = Iterator[dict[str, Any]]


@dataclass(frozen=True)
class Subject:
    """An untrained network and the pictures of the experiment, with its configuration."""

    config: DictConfig
    splits: Splits
    network: Network


def subject(seed: int, *overrides: str) -> Subject:
    """Return the network and the pictures of ``experiment=untrained_networks seed=SEED``."""
    chosen = ["experiment=untrained_networks", f"seed={seed}", *overrides]
    with initialize_config_module("pruning_lab.conf", version_base="1.3"):
        config = compose("config", chosen)
    splits = build_data(config.dataset)
    model = fresh_model(config.model, splits, TASK, config.seeds.init)
    return Subject(config, splits, Network(model, splits.input_size, torch.device("cpu")))


def permuted(pictures: Images, seeds: Sequence[int]) -> Images:
    """Return the pictures with their labels in a random order."""
    order = torch.from_numpy(np.random.default_rng(seeds).permutation(len(pictures)))
    shuffled = copy.copy(pictures)
    shuffled.labels = pictures.labels[order]
    return shuffled


def pruned(given: Subject) -> Rows:
    """Remove units with negative scores, layer by layer; measure before, and after each layer."""
    config, splits, network = given.config, given.splits, given.network
    schedule: Schedule = build(config.schedule, "schedule", Schedule)
    batches = loader(splits.score, config.scoring.batch_size)
    metric = build(config.metric, "metric")(network.model, batches, TASK.loss, "cpu")
    yield measured(given, 0)
    steps = Conditions(TASK, splits, schedule, Training(epochs=0), order=0).steps(network)
    for number, step in enumerate(steps, 1):
        unit_groups = network.unit_groups(step.layers, schedule.coupled)
        estimates = metric.estimate(list(unit_groups.values()), True)
        scores = {name: layer.scores for name, layer in zip(unit_groups, estimates, strict=True)}
        network.pruner.prune_groups(network.plan(scores, step, schedule))
        yield measured(given, number)


def measured(given: Subject, layers: int) -> dict[str, Any]:
    """Return accuracies and remaining units, with ``layers`` layers pruned."""
    model, splits = given.network.model, given.splits
    test, score = (
        evaluate(model, data, TASK).values["accuracy"] for data in (splits.test, splits.score)
    )
    units = sum(given.network.widths().values())
    return {"layers": layers, "units": units, "test_accuracy": test, "score_accuracy": score}


def nearest_mean(features: nn.Module, splits: Splits) -> dict[str, Any]:
    """Classify by the nearest class mean of the scoring pictures' features (Euclidean)."""
    known, classes = outputs(features, splits.score)
    means = torch.stack([known[classes == label].mean(0) for label in range(splits.num_classes)])
    accuracies = {}
    for name in ("test", "score"):
        values, targets = outputs(features, getattr(splits, name))
        nearest = torch.cdist(values, means).argmin(1)
        accuracies[f"{name}_accuracy"] = float((nearest == targets).double().mean())
    return accuracies


@torch.no_grad()
def outputs(features: nn.Module, data: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features (N, numbers) and classes (N,) of all pictures."""
    batches = [(features(x), target) for x, target in loader(data, 500)]
    values, targets = zip(*batches, strict=True)
    return torch.cat(values), torch.cat(targets)


def control(name: str, seed: int, draw: int, given: Subject) -> Rows:
    """Yield the rows of one control on the network of ``seed``; every draw permutes anew."""
    if name == PIXELS:
        yield nearest_mean(nn.Flatten(), given.splits)
    elif name == FEATURES:  # all but the last layer
        yield nearest_mean(nn.Sequential(*[*given.network.model][:-1]), given.splits)
    elif name == PERMUTED:
        splits = replace(given.splits, score=permuted(given.splits.score, (seed, draw)))
        yield from pruned(replace(given, splits=splits))
    else:
        yield from pruned(given)


def main() -> None:
    """Add each control, network and draw that the table lacks."""
    torch.set_num_threads(1)
    jobs = [
        {"control": name, "seed": seed, "draw": draw}
        for name in CONTROLS
        for draw in range(DRAWS if name == PERMUTED else 1)
        for seed in SEEDS
    ]
    for job in tqdm(jobs, "Controls"):
        done = pd.read_csv(TABLE) if TABLE.exists() else pd.DataFrame(columns=list(job))
        if (done[list(job)] == list(job.values())).all(axis=1).any():
            continue
        rows = control(*job.values(), subject(job["seed"]))
        table = pd.concat([done, pd.DataFrame([job | row for row in rows])])
        with replacing(TABLE) as temporary:  # whole or not at all
            table.convert_dtypes().to_csv(temporary, index=False)


if __name__ == "__main__":
    main()
