"""Which recipe of fine-tuning does not harm: rates, schedules and lengths, judged on ``val``.

    python -m experiments.recovery.run     # resumes; writes results.csv beside this file

Networks that no study here uses are pruned at once, their BatchNorm statistics made anew, and the
same pruned network is fine-tuned by every recipe. Only the validation split is looked at.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_module
from tqdm import tqdm

from pruning_lab.attributions import RandomAttributionMetric, TaylorAttributionMetric
from pruning_lab.datasets import Splits, loader
from pruning_lab.network import Network
from pruning_lab.random_streams import seed_all
from pruning_lab.schedules import OneShot
from pruning_lab.setup import build_data, build_model
from pruning_lab.track import seeded
from pruning_lab.training import Training, evaluate, fit, recalibrate, snapshot

RESULTS = Path(__file__).with_name("results.csv")
NETWORKS = [
    ("convnet", "fashion_mnist", 100), ("resnet20", "fashion_mnist", 100),
    ("convnet", "digits", 100), ("vgg11", "digits", 100),
    ("convnet", "fashion_mnist", 101), ("convnet", "digits", 101),
]  # fmt: skip
"""Model, data set (10,000 training pictures of the first), seed."""

CRITERIA = {"random": RandomAttributionMetric, "taylor": TaylorAttributionMetric}
TARGETS = (0.5, 0.8)
RECIPES = [
    *itertools.product(("cosine",), (0.001, 0.003, 0.01, 0.03), (40, 160)),
    ("constant", 0.01, 40),
    ("constant", 0.01, 160),
]
"""Schedule of the learning rate, its peak, and steps of 64 pictures."""

ABOUT = ["model", "dataset", "seed", "criterion", "target", "lr_schedule", "lr", "steps"]


def main() -> None:
    """Do what is not in the results yet."""
    torch.set_num_threads(1)
    done = pd.read_csv(RESULTS) if RESULTS.exists() else pd.DataFrame(columns=ABOUT)
    for model, dataset, seed in NETWORKS:
        own = done[(done["model"] == model) & (done["dataset"] == dataset) & (done["seed"] == seed)]
        if len(own) == len(CRITERIA) * len(TARGETS) * len(RECIPES):
            continue
        about = {"model": model, "dataset": dataset, "seed": seed}
        rows = [about | row for row in network(model, dataset, seed)]
        done = pd.concat([done, pd.DataFrame(rows)], ignore_index=True)
        done.to_csv(RESULTS, index=False)


def network(model: str, dataset: str, seed: int) -> Iterator[dict[str, Any]]:
    """Every recipe on every pruned network that one baseline gives."""
    overrides = [f"model={model}", f"dataset={dataset}", f"seed={seed}"]
    if dataset == "fashion_mnist":
        overrides.append("dataset.train=10000")
    with initialize_config_module("pruning_lab.conf", version_base="1.3"):
        config = compose("config", overrides)
    splits = build_data(config.dataset)
    seed_all(seed)
    base = Network(build_model(config.model, splits), splits.input_size, "cpu")
    training = Training(epochs=5, lr=0.05, weight_decay=5e-4, lr_schedule="one_cycle")
    train(base, splits, training, seed, f"{model} on {dataset}, seed {seed}")
    cases = list(itertools.product(CRITERIA, TARGETS))
    for criterion, target in cases:
        pruned = base.copy()
        prune(pruned, splits, criterion, target, seed)
        recalibrate(pruned.model, splits.train, 1000, seeded(seed, 99))
        before = evaluate(pruned.model, splits.val)
        label = f"{model} on {dataset}, {criterion}, {target}"
        for lr_schedule, lr, steps in tqdm(RECIPES, label, leave=False):
            recipe = Training(
                epochs=1, steps=steps, lr=lr, weight_decay=5e-4, lr_schedule=lr_schedule
            )
            undo = snapshot(pruned.model, recipe.optimizer(pruned.model))
            train(pruned, splits, recipe, seed, "")
            after = evaluate(pruned.model, splits.val)
            undo()
            yield {
                "criterion": criterion, "target": target, "lr_schedule": lr_schedule, "lr": lr,
                "steps": steps, "accuracy_before": before.accuracy, "loss_before": before.loss,
                "accuracy_after": after.accuracy, "loss_after": after.loss,
            }  # fmt: skip


def train(network: Network, splits: Splits, training: Training, seed: int, label: str) -> None:
    """Fit from a fresh optimizer; all recipes see the pictures in the same order."""
    optimizer = training.optimizer(network.model)
    fit(network.model, optimizer, splits.train, training, seeded(seed, 0), label)


def prune(network: Network, splits: Splits, criterion: str, target: float, seed: int) -> None:
    """Remove ``target`` of the FLOPs at once, the same share of every group."""
    seed_all(seed)
    batches = loader(splits.score, 64)
    metric = CRITERIA[criterion](network.model, batches, F.cross_entropy, "cpu")
    schedule = OneShot(target=target)
    players = network.players(tuple(network.layers), schedule.coupled)
    found = metric.estimate(list(players.values()), True)
    (step,) = schedule.steps_for([[*network.layers]])
    scores = {name: each.scores for name, each in zip(players, found, strict=True)}
    network.pruner.prune_groups(network.plan(scores, step, schedule))


if __name__ == "__main__":
    main()
