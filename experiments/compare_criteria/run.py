"""Train networks and prune them, with criteria, statistics, recovery and pictures as factors.

    python -m experiments.compare_criteria.run convnet --networks 0 1 2

Each network is trained and pruned in all ways listed in contrasts.md. Its results are written to
``records/BLOCK/NETWORK.csv`` and ``.npz`` when it is done, and until then, for each criterion, to a
folder there. Existing results are not computed again; results of a criterion on other weights or
with another recipe are refused.
"""

import argparse
import itertools
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from hydra import compose, initialize_config_module
from torch import nn
from torch.utils.data import Dataset, Subset

from experiments.compare_criteria.records import FEW, LONG, NONE, NONE_OF_FEW, RECORDS
from experiments.compare_criteria.shifts import shifted
from pruning_lab.attributions import (
    RandomAttributionMetric,
    ShapleyAttributionMetric,
    TaylorAttributionMetric,
    WeightNormAttributionMetric,
)
from pruning_lab.attributions.criteria.banzhaf import BanzhafAttributionMetric
from pruning_lab.attributions.criteria.owen_gradient import OwenGradientAttributionMetric
from pruning_lab.config.build import build
from pruning_lab.datasets import Splits
from pruning_lab.experiment.fingerprint import digest_of_network, fresh_model
from pruning_lab.experiment.labels import git_commit
from pruning_lab.experiment.parts import build_data
from pruning_lab.experiment.pruning_run import PruningRun, StepResult
from pruning_lab.experiment.study import Criterion, compare_criteria
from pruning_lab.pruning.schedules import Geometric, LayerByLayer, Schedule
from pruning_lab.records.step import MAIN, STALE
from pruning_lab.runtime.files import replacing
from pruning_lab.runtime.random_streams import seeded
from pruning_lab.tasks import Classification
from pruning_lab.training.evaluation import Evaluation, evaluate
from pruning_lab.training.fit import fit
from pruning_lab.training.recipe import Training

TASK = Classification()

FORTY = "40 steps"
SHIFTED_AT, SHIFTED = (3, 6), 2500
"""Steps (about 78 and 95 % removed) that are also measured on shifted pictures; their number."""

TO_95 = Geometric(target=0.95, steps=6, of="flops")
LAYER_BY_LAYER = LayerByLayer(share=0.7)
DEFAULT = "mean_plus_2_std"
REDUCTIONS = ("mean", "mean_abs", DEFAULT)
COLUMNS = [
    "block", "network", "metric", "schedule", "repair", "step", "removed_flops",
    "removed_parameters", "test_accuracy_after", "test_loss_after", "val_accuracy_after",
    "test_worst_class_accuracy_after", "test_calibration_error_after", "noise", "blur",
    "translation", "scoring_seconds", "recalibrate_seconds", "finetune_seconds", "pictures",
    "recipe", "commit", "minutes",
]  # fmt: skip


@dataclass(frozen=True)
class Block:
    """A model on a data set, and the numbers of pictures that Shapley values see there.

    ``second`` blocks have fewer arms and repairs, to save hours.
    """

    overrides: tuple[str, ...]
    pictures: tuple[int, ...] = (16,)
    second: bool = True


BLOCKS = {
    "convnet": Block(
        ("model=convnet", "model.hidden=512", "dataset=fashion_mnist", "dataset.train=10000"),
        pictures=(16, 64, 256),
        second=False,
    ),
    "resnet20": Block(
        ("model=resnet20", "dataset=fashion_mnist", "dataset.train=10000", "dataset.test=2500")
    ),
    "vgg11": Block(("model=vgg11", "dataset=digits")),
}


@dataclass(frozen=True)
class Arm:
    """Criteria that are compared by one schedule with the same repairs."""

    criteria: dict[str, Criterion]
    schedule: Schedule
    finetune: dict[str, Training]


def arms(block: Block, network: int, finetune: Training, pictures: int) -> list[Arm]:
    """Return the main comparison, variants of scores without fine-tuning, and layer by layer.

    Random draws are seeded by ``network``. ``pictures`` is the size of the training split.
    """
    shapley = partial(ShapleyAttributionMetric, sv_samples=2)
    compared: dict[str, Criterion] = {
        "random": partial(RandomAttributionMetric, seed=network),
        "weight_norm": WeightNormAttributionMetric,
        "taylor": TaylorAttributionMetric,
        "taylor_signed": partial(TaylorAttributionMetric, signed=True),
        "owen_gradient": partial(
            OwenGradientAttributionMetric, reduction=DEFAULT, masks=8, seed=network
        ),
        "banzhaf": partial(
            BanzhafAttributionMetric, reduction=DEFAULT, masks=64, samples=32, seed=network
        ),
    }
    varied: dict[str, Criterion] = {}
    for samples, reduction in itertools.product(block.pictures, REDUCTIONS):
        group = compared if samples == block.pictures[-1] else varied
        settings = {"samples": samples, "reduction": reduction}
        group[f"shapley {reduction} {samples}"] = partial(shapley, **settings, seed=network)
        if network < 4 and (samples, reduction) == (64, "mean"):
            again = partial(shapley, **settings, seed=1000 + network)
            varied[f"shapley {reduction} {samples}, other draw"] = again
    drawn_again = {"random, other draw": partial(RandomAttributionMetric, seed=1000 + network)}
    recipes = recoveries(finetune, pictures)
    if block.second:
        del recipes[FORTY]
        return [Arm(compared | drawn_again, TO_95, recipes)]
    return [
        Arm(compared | drawn_again, TO_95, recipes),
        Arm(varied, TO_95, {"none": Training(epochs=0)}),
        Arm(compared, LAYER_BY_LAYER, {FEW: recipes[FEW]}),
    ]


def recoveries(finetune: Training, pictures: int) -> dict[str, Training]:
    """Return the default recipe in two lengths, and on 100 of ``pictures`` pictures."""
    return {
        LONG: replace(finetune, steps=160),
        FORTY: replace(finetune, steps=40),
        FEW: replace(finetune, steps=160, share=100 / pictures),
    }


def repair(track: str, recipe: str) -> str:
    """Return the name of the repair after each cut of a track."""
    if track == STALE:
        return "stale"
    if track == MAIN and recipe != "none":
        return recipe
    return NONE_OF_FEW if recipe == FEW else NONE


def trained(name: str, network: int) -> tuple[nn.Module, Splits, Training]:
    """Train one network of a block; return it, its data and the recipe of fine-tuning."""
    with initialize_config_module("pruning_lab.conf", version_base="1.3"):
        config = compose("config", [*BLOCKS[name].overrides, f"seed={network}"])
    splits = build_data(config.dataset)
    model = fresh_model(config.model, splits, TASK, network)
    training: Training = build(config.baseline.training, "baseline.training", Training)
    optimizer, order = training.optimizer(model), seeded(network, 0)
    fit(model, optimizer, splits.train, training, TASK, order, f"Training {name} {network}")
    return model, splits, build(config.finetune, "finetune", Training)


def study(name: str, network: int) -> None:
    """Prune one network in every way, and write the results."""
    model, splits, finetune = trained(name, network)
    planned = arms(BLOCKS[name], network, finetune, len(splits.train))  # type: ignore[arg-type]
    subset = Subset(splits.test, range(min(SHIFTED, len(splits.test))))  # type: ignore[arg-type]
    shifts = shifted(subset)
    unpruned = evaluate(model, splits.test, TASK)
    known = {"recipe": repr(finetune), "weights": digest_of_network(model)}
    folder, frames, correct = records(name, network).with_suffix(""), [], []
    for number, arm in enumerate(planned):
        for criterion in arm.criteria:
            path = folder / f"{number} {criterion}.csv"
            if not path.exists():
                frame, answers = one_criterion(model, splits, shifts, arm, criterion, network)
                write(path, frame.assign(commit=git_commit(), **known), correct=answers)
            with np.load(path.with_suffix(".npz")) as file:
                answers = file["correct"]
            frame = pd.read_csv(path, dtype={"weights": str})
            check(path, frame, known)
            frames.append(frame.assign(pictures=frame["pictures"] + sum(map(len, correct))))
            correct.append(answers)
    frame = pd.concat(frames).drop_duplicates(["metric", "schedule", "repair", "step"])
    frame["block"], frame["network"] = name, network
    frame["minutes"] = sum(frame["minutes"].iloc[0] for frame in frames)
    keep(frame[COLUMNS], np.concatenate(correct), unpruned.samples["targets"],
         class_losses(evaluate(model, splits.score, TASK)))  # fmt: skip


def check(path: Path, frame: pd.DataFrame, known: Mapping[str, str]) -> None:
    """Raise ValueError for results of other weights or another recipe than ``known``."""
    for name, value in known.items():
        if (frame[name] != value).any():
            raise ValueError(f"{path} has {name} {frame[name].iloc[0]}, not {value}. Delete it.")


def one_criterion(
    model: nn.Module,
    splits: Splits,
    others: Mapping[str, Dataset],
    arm: Arm,
    criterion: str,
    network: int,
) -> tuple[pd.DataFrame, np.ndarray]:
    """Prune a trained network by one criterion, with all repairs of an arm.

    ``others`` are shifted test pictures, by kind of shift. Return a row for each step, and which
    test pictures are classified correctly, as bits (rows, pictures / 8).
    """
    started, correct = time.time(), []

    def also(run: PruningRun, step: int, result: StepResult) -> Mapping[str, Any]:
        """Store this step's answers; return their row number, and shifted pictures' accuracies."""
        measures: dict[str, Any] = {"pictures": len(correct)}
        correct.append(np.packbits(result.test[list(result.test)[-1]]["correct"]))
        setting = run.conditions
        full = setting.finetune.share == 1 and setting.finetune.steps in (None, 160)
        if full and setting.recalibrate and setting.schedule == TO_95 and step in SHIFTED_AT:
            for kind, pictures in others.items():
                measures[kind] = evaluate(run.network.model, pictures, TASK).values["accuracy"]
        return measures

    frame = compare_criteria(
        model, splits, {criterion: arm.criteria[criterion]}, arm.schedule, arm.finetune,
        stale=True, undo_harm=False, every_stage=False, seeds=[network], also=also,
    )  # fmt: skip
    pairs = zip(frame["track"], frame["finetune"], strict=True)
    frame["repair"] = [repair(track, recipe) for track, recipe in pairs]
    frame["minutes"] = (time.time() - started) / 60
    return frame, np.array(correct)


def class_losses(found: Evaluation) -> np.ndarray:
    """Return the mean loss of each class that occurs, (classes,)."""
    losses, targets = found.samples["losses"], found.samples["targets"]
    return np.array([losses[targets == label].mean() for label in np.unique(targets)])


def keep(frame: pd.DataFrame, correct: np.ndarray, targets: np.ndarray, losses: np.ndarray) -> None:
    """Write the rows as a table, and their answers as differences from the first row's.

    ``losses`` (classes,) are those of the unpruned network on the scoring pictures.
    """
    correct[1:] ^= correct[0]
    path = records(*frame[["block", "network"]].iloc[0])
    write(path, frame, correct=correct, targets=targets.astype(np.uint8), losses=losses)


def write(path: Path, frame: pd.DataFrame, **arrays: np.ndarray) -> None:
    """Write arrays to an npz, then the table beside it: if the table exists, so does the npz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path.with_suffix(".npz")) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
    with replacing(path) as temporary:
        frame.to_csv(temporary, index=False, float_format="%.6g")


def records(name: str, network: int) -> Path:
    """Return the path of a network's table; the npz lies beside it."""
    return RECORDS / name / f"{network:02d}.csv"


def main() -> None:
    """Study the requested networks that have no records yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("block", choices=BLOCKS)
    parser.add_argument("--networks", type=int, nargs="+", required=True, help="their seeds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for network in options.networks:
        path = records(options.block, network)
        if not path.exists():
            study(options.block, network)
        shutil.rmtree(path.with_suffix(""), ignore_errors=True)


if __name__ == "__main__":
    main()
