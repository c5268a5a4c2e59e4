"""Criteria, statistics, recovery and pictures as factors, on networks that are trained here.

    python -m experiments.compare_criteria.run convnet --networks 0 1 2

One network after the other is trained and pruned in every way of contrasts.md. What was measured
is written to ``records/BLOCK/NETWORK.csv`` and ``.npz`` when a network is done; those that are
there are left alone.
"""

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_module

from pruning_lab.atomic import replacing
from pruning_lab.attributions import (
    RandomAttributionMetric,
    ShapleyAttributionMetric,
    TaylorAttributionMetric,
    WeightNormAttributionMetric,
)
from pruning_lab.attributions.banzhaf import BanzhafAttributionMetric
from pruning_lab.attributions.owen_gradient import OwenGradientAttributionMetric
from pruning_lab.datasets.shifts import shifted
from pruning_lab.identity import fresh_model
from pruning_lab.record import git_commit
from pruning_lab.schedules import Geometric
from pruning_lab.setup import build, build_data
from pruning_lab.study import Criterion, compare_criteria
from pruning_lab.track import MAIN, UNTUNED, Done, Track, seeded
from pruning_lab.training import Training, evaluate, fit

RECORDS = Path(__file__).with_name("records")
SCHEDULE = Geometric(target=0.95, steps=6, of="flops")
SHIFTED_AT = (3, 6)
"""Steps (78 and 95 % removed) after which shifted pictures are measured, too."""

PICTURES = (16, 64, 256)
REDUCTIONS = ("mean", "mean_abs", "mean_plus_2_std")


@dataclass(frozen=True)
class Block:
    """A model on a data set, and which criteria are compared there."""

    overrides: tuple[str, ...]
    pictures: tuple[int, ...] = PICTURES


BLOCKS = {
    "convnet": Block(
        ("model=convnet", "model.hidden=512", "dataset=fashion_mnist", "dataset.train=10000")
    ),
    "resnet20": Block(
        ("model=resnet20", "dataset=fashion_mnist", "dataset.train=10000"), pictures=(16, 64)
    ),
    "vgg11": Block(("model=vgg11", "dataset=digits"), pictures=(16, 64)),
}


def criteria(block: Block, network: int) -> dict[str, Criterion]:
    """All that are compared, by name; draws belong to the network."""
    shapley = partial(ShapleyAttributionMetric, sv_samples=2)
    found: dict[str, Criterion] = {
        "random": partial(RandomAttributionMetric, seed=network),
        "random, other draw": partial(RandomAttributionMetric, seed=1000 + network),
        "weight_norm": WeightNormAttributionMetric,
        "taylor": TaylorAttributionMetric,
        "taylor_signed": partial(TaylorAttributionMetric, signed=True),
        "owen_gradient": partial(OwenGradientAttributionMetric, masks=8, seed=network),
        "banzhaf": partial(BanzhafAttributionMetric, masks=64, samples=32, seed=network),
    }
    for pictures in block.pictures:
        for reduction in REDUCTIONS:
            settings = {"samples": pictures, "reduction": reduction}
            name = f"shapley {reduction} {pictures}"
            found[name] = partial(shapley, **settings, seed=network)
            if network < 4 and (pictures, reduction) == (64, "mean"):
                found[f"{name}, other draw"] = partial(shapley, **settings, seed=1000 + network)
    return found


def recoveries(finetune: Training, pictures: int) -> dict[str, Training]:
    """The default recipe in two lengths, and on 100 of so many pictures."""
    make = partial(
        Training, epochs=1, lr=finetune.lr, momentum=finetune.momentum,
        weight_decay=finetune.weight_decay, lr_schedule=finetune.lr_schedule,
    )  # fmt: skip
    return {
        "160 steps": make(steps=160),
        "40 steps": make(steps=40),
        "160 steps on 100 pictures": make(steps=160, share=100 / pictures),
    }


def study(name: str, network: int) -> None:
    """Train one network, prune it in every way, and write down what was measured."""
    started, block = time.time(), BLOCKS[name]
    with initialize_config_module("pruning_lab.conf", version_base="1.3"):
        config = compose("config", [*block.overrides, f"seed={network}"])
    splits = build_data(config.dataset)
    model = fresh_model(config.model, splits, network)
    training: Training = build(config.baseline.training, "baseline.training", Training)
    optimizer, order = training.optimizer(model), seeded(network, 0)
    fit(model, optimizer, splits.train, training, order, f"Training {name} {network}")
    others, correct = shifted(splits.test), []

    def also(track: Track, step: int, done: Done) -> Mapping[str, Any]:
        """Where each stage's answers are in the npz, and what shifted pictures come to."""
        found: dict[str, Any] = {}
        for stage, measured in done.test.items():
            found[f"pictures_{stage}"] = len(correct)
            correct.append(np.packbits(measured.correct))
        if track.name in (MAIN, UNTUNED) and step in SHIFTED_AT:
            for kind, pictures in others.items():
                accuracy = evaluate(track.network.model, pictures).accuracy
                found[f"{kind}_accuracy_after"] = accuracy
        return found

    recipes = recoveries(config.finetune, len(splits.train))
    frame = compare_criteria(
        model, splits, criteria(block, network), SCHEDULE, recipes, stale=True, undo_harm=False,
        seeds=[network], also=also,
    )  # fmt: skip
    frame["model"], frame["dataset"] = name, config.dataset._target_.rpartition(".")[2]
    frame["run_id"] = name + " " + frame["run_id"]
    frame["commit"], frame["recipe"] = git_commit(), repr(recipes["160 steps"])
    frame["minutes"] = (time.time() - started) / 60
    path = records(name, network)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path.with_suffix(".npz")) as temporary, temporary.open("wb") as file:
        targets = evaluate(model, splits.test).targets
        np.savez_compressed(file, correct=np.array(correct), target=targets.astype(np.int16))
    with replacing(path) as temporary:
        frame.to_csv(temporary, index=False, float_format="%.6g")


def records(name: str, network: int) -> Path:
    """Where a network's rows are; beside them is the npz."""
    return RECORDS / name / f"{network:02d}.csv"


def main() -> None:
    """Do the networks that are asked for and not there yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("block", choices=BLOCKS)
    parser.add_argument("--networks", type=int, nargs="+", required=True, help="their seeds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for network in options.networks:
        if not records(options.block, network).exists():
            study(options.block, network)


if __name__ == "__main__":
    main()
