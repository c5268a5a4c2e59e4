"""Choose defaults on ``val``: the recipe of fine-tuning, and the reduction of per-sample scores.

    python -m experiments.pilots.run recovery       # both resume after the last network that
    python -m experiments.pilots.run reductions     # is done, and can run side by side

Every network of networks.py is pruned in one shot by each criterion and reduction (reductions.csv).
Networks pruned by random removal and Taylor are fine-tuned by each recipe (recovery.csv). The test
split is not used.
"""

import argparse
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from experiments.pilots.networks import Pilot, pilots, train
from pruning_lab.attributions import (
    RandomAttributionMetric,
    SensitivityAttributionMetric,
    ShapleyAttributionMetric,
    TaylorAttributionMetric,
)
from pruning_lab.attributions.criteria.banzhaf import BanzhafAttributionMetric
from pruning_lab.attributions.criteria.owen_gradient import OwenGradientAttributionMetric
from pruning_lab.experiment.study import Criterion
from pruning_lab.runtime.files import replacing
from pruning_lab.tasks import Classification
from pruning_lab.training.evaluation import evaluate
from pruning_lab.training.fit import snapshot
from pruning_lab.training.recipe import Training

TASK = Classification()

FOLDER = Path(__file__).parent
RECIPES = [
    *itertools.product(("cosine",), (0.001, 0.003, 0.01, 0.03), (40, 160)),
    ("constant", 0.01, 40),
    ("constant", 0.01, 160),
]
"""Schedule of the learning rate, its peak, and steps of 64 pictures."""

REDUCED: dict[str, Criterion] = {
    "sensitivity": SensitivityAttributionMetric,
    "taylor": TaylorAttributionMetric,
    "taylor_signed": partial(TaylorAttributionMetric, signed=True),
    "owen_gradient": partial(OwenGradientAttributionMetric, masks=8),
    "banzhaf": partial(BanzhafAttributionMetric, masks=64, samples=32),
    "shapley 16": partial(ShapleyAttributionMetric, samples=16, sv_samples=2),
    "shapley 64": partial(ShapleyAttributionMetric, samples=64, sv_samples=2),
}
REDUCTIONS = ("mean", "mean_abs", "mean_plus_2_std")
SEEDS = (0, 1, 2)
"""Seeds of random removal, which is compared with the reductions."""

Rows = Iterator[dict[str, Any]]


def reductions(pilot: Pilot) -> Rows:
    """Yield accuracy and loss by criterion and reduction, recalibrated, not fine-tuned."""
    cases: dict[tuple[str, str], Criterion] = {
        ("random", str(seed)): partial(RandomAttributionMetric, seed=seed) for seed in SEEDS
    }
    for (name, criterion), reduction in itertools.product(REDUCED.items(), REDUCTIONS):
        cases[name, reduction] = partial(criterion, reduction=reduction)
    for (name, reduction), criterion in tqdm(cases.items(), "Reductions", leave=False):
        for target, pruned in pilot.pruned(criterion):
            evaluation = evaluate(pruned.model, pilot.splits.val, TASK)
            yield {
                "target": target, "criterion": name, "reduction": reduction,
                "accuracy": evaluation.values["accuracy"], "loss": evaluation.values["loss"],
            }  # fmt: skip


def recovery(pilot: Pilot) -> Rows:
    """Yield accuracy and loss before and after each recipe, from the same pruned networks."""
    criteria: dict[str, Criterion] = {
        "random": RandomAttributionMetric,
        "taylor": TaylorAttributionMetric,
    }
    cases = ((name, *case) for name in criteria for case in pilot.pruned(criteria[name]))
    for name, target, pruned in cases:
        before = evaluate(pruned.model, pilot.splits.val, TASK)
        for lr_schedule, lr, steps in tqdm(RECIPES, f"Recipes, {name}, {target}", leave=False):
            recipe = Training(steps=steps, lr=lr, weight_decay=5e-4, lr_schedule=lr_schedule)
            undo = snapshot(pruned.model, recipe.optimizer(pruned.model))
            train(pilot, pruned, recipe)
            after = evaluate(pruned.model, pilot.splits.val, TASK)
            undo()
            yield {
                "target": target, "criterion": name, "lr_schedule": lr_schedule, "lr": lr,
                "steps": steps, "accuracy_before": before.values["accuracy"],
                "loss_before": before.values["loss"],
                "accuracy": after.values["accuracy"], "loss": after.values["loss"],
            }  # fmt: skip


def extend(pilot: Pilot, name: str, measure: Callable[[Pilot], Rows]) -> None:
    """Add a network's rows to a table, unless it has them."""
    path = FOLDER / f"{name}.csv"
    done = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=list(pilot.about))
    if (done[list(pilot.about)] == list(pilot.about.values())).all(axis=1).any():
        return
    rows = pd.DataFrame([pilot.about | row for row in measure(pilot)])
    with replacing(path) as temporary:  # whole or not at all
        pd.concat([done, rows], ignore_index=True).to_csv(temporary, index=False)


def main() -> None:
    """Measure the networks that the table lacks."""
    tables = {"recovery": recovery, "reductions": reductions}
    parser = argparse.ArgumentParser(description="Choose defaults on the validation split.")
    parser.add_argument("table", choices=tables)
    table = parser.parse_args().table
    torch.set_num_threads(1)
    for pilot in pilots():
        extend(pilot, table, tables[table])


if __name__ == "__main__":
    main()
