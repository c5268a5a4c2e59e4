"""How robust is a network against losing units in the order of a criterion, layer by layer?"""

import argparse
import hashlib
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from pruning_lab.attributions import (
    APoZAttributionMetric,
    RandomAttributionMetric,
    SensitivityAttributionMetric,
    ShapleyAttributionMetric,
    TaylorAttributionMetric,
    WeightNormAttributionMetric,
)
from pruning_lab.attributions.removals import RemovalMetric, first_of
from pruning_lab.checkpoint import load_state, save_state
from pruning_lab.compare import markdown
from pruning_lab.datasets import Splits, loader
from pruning_lab.datasets.fashion_mnist import fashion_mnist
from pruning_lab.errors import check_count
from pruning_lab.graph import find_structure, units_of
from pruning_lab.models.vgg import VGG
from pruning_lab.prunable import choose_layers
from pruning_lab.training import Training, evaluate, fit

Orders = dict[str, list[np.ndarray]]
"""criterion -> an order of removal for each of its draws"""

DETERMINISTIC = {
    "weight_norm": WeightNormAttributionMetric,
    "apoz": APoZAttributionMetric,
    "sensitivity": SensitivityAttributionMetric,
    "taylor": TaylorAttributionMetric,
    "taylor_signed": partial(TaylorAttributionMetric, signed=True),
}


def orders_of(
    model: nn.Module,
    layer: nn.Module,
    scored: DataLoader,
    device: str,
    draws: int,
    samples: int | None = None,
) -> Orders:
    """The orders in which each criterion removes the units of a layer, lowest score first.

    Of criteria that draw at random there are as many as ``draws``. Shapley values are those of
    ``samples`` of the pictures, by two orders and their reverses for each; what these draws add to
    the spread over the pictures is taken off, as ``mean_plus_2_std`` does.
    """
    given = (model, scored, F.cross_entropy, device)
    found = {
        name: [_ascending(make(*given).run(layer, True))] for name, make in DETERMINISTIC.items()
    }
    for seed in range(draws):
        one, other = (
            ShapleyAttributionMetric(*given, "none", sv_samples=2, samples=samples, seed=each).run(
                layer, True
            )
            for each in (2 * seed, 2 * seed + 1)
        )
        rows, noise = (one + other) / 2, ((one - other) ** 2 / 4).mean(0)
        spread = np.sqrt(np.clip(rows.var(0) - noise, 0, None))
        drawn = {
            "random": RandomAttributionMetric(*given, seed=seed).run(layer, True),
            "shapley_mean": rows.mean(0),
            "shapley_mean_plus_2_std": rows.mean(0) + 2 * spread,
        }
        for name, scores in drawn.items():
            found.setdefault(name, []).append(_ascending(scores))
    return found


def _ascending(scores: np.ndarray) -> np.ndarray:
    return np.argsort(scores, kind="stable")


def grid(units: int, points: int | None) -> np.ndarray:
    """Numbers of units removed: all from 1 on, or some ``points`` of them, evenly; all at last."""
    check_count("points", points if points is not None else units)
    every = np.arange(1, units + 1)
    if points is None or points >= units:
        return every
    return np.unique(np.rint(np.linspace(0, units, points + 1)).astype(int))[1:]


def total_rise(rises: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The sum over t = 1 ... units of the rise after t removals, by the trapezoid rule.

    ``rises`` (..., counts) are those after ``counts`` removals, the last of them all units; exact
    where no count is left out.
    """
    area = np.trapezoid(np.insert(rises, 0, 0, axis=-1), np.insert(counts, 0, 0), axis=-1)
    return area + rises[..., -1] / 2


def layer_totals(
    model: nn.Module,
    layer: nn.Module,
    orders: Orders,
    tested: DataLoader,
    device: str,
    points: int | None,
) -> dict[str, np.ndarray]:
    """For each criterion the total rise of the loss, (draws, samples), when a layer loses units."""
    counts = grid(units_of(layer), points)
    every = [(name, order) for name, each in orders.items() for order in each]
    removed = np.concatenate([first_of(order, counts) for _, order in every])
    metric = RemovalMetric(model, tested, F.cross_entropy, device, "none", removed=removed)
    rises = metric.run(layer, True).reshape(-1, len(every), len(counts))
    totals = total_rise(rises, counts)
    found: dict[str, list[np.ndarray]] = {}
    for (name, _), total in zip(every, totals.T, strict=True):
        found.setdefault(name, []).append(total)
    return {name: np.stack(each) for name, each in found.items()}


def _save(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Written whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    np.savez(temporary, **arrays)
    temporary.replace(path)


def robustness(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    scored: DataLoader,
    tested: DataLoader,
    *,
    device: str = "cpu",
    draws: int = 3,
    points: int | None = 32,
    samples: int | None = None,
    folder: Path | None = None,
) -> dict[str, np.ndarray]:
    """For each criterion the mean rise of the loss per removed unit, (draws, samples).

    Units are put to 0 behind BatchNorm and non-linearity, one after another, one layer at a time.
    What a layer gave is kept in ``folder``: an interrupted run goes on from there.
    """
    totals: dict[str, np.ndarray] = {}
    for name, layer in tqdm(layers.items(), "Layers", disable=None):
        path = folder / f"{name}.npz" if folder else None
        if path is not None and path.exists():
            with np.load(path, allow_pickle=False) as kept:
                found = dict(kept)
        else:
            orders = orders_of(model, layer, scored, device, draws, samples)
            found = layer_totals(model, layer, orders, tested, device, points)
            if path is not None:
                _save(path, found)
        for criterion, each in found.items():
            totals[criterion] = totals.get(criterion, 0) + each
        assert totals.keys() == found.keys(), f"{path} is of other criteria: delete it"
    units = sum(units_of(layer) for layer in layers.values())
    return {criterion: each / units for criterion, each in totals.items()}


# -- the study --------------------------------------------------------------------------------

PUBLISHED = {
    "weight_norm": 0.47, "random": 0.48, "sensitivity": 0.47, "taylor": 0.47,
    "taylor_signed": 0.64, "apoz": 0.56, "shapley_mean": 0.35, "shapley_mean_plus_2_std": 0.31,
}  # fmt: skip
"""Ancona et al., VGG16 on CIFAR-10: 1000 test images, every single removal."""


def interval(values: np.ndarray) -> tuple[float, float]:
    """The mean of (draws, samples) and half its 95 % interval over the samples, by Student's t."""
    samples = values.mean(0)
    half = stats.t.ppf(0.975, len(samples) - 1) * stats.sem(samples)
    return float(samples.mean()), float(half)


def table(found: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """One row a criterion, the most robust first."""
    rows = {}
    for name, values in found.items():
        mean, half = interval(values)
        draws = values.mean(1)
        rows[name] = {
            "rise of the loss per unit": f"{mean:.3f} ± {half:.3f}",
            "draws": f"{draws.min():.3f} to {draws.max():.3f}" if len(draws) > 1 else "",
            "published, CIFAR-10": f"{PUBLISHED[name]:.2f}",
            "mean": mean,
        }
    frame = pd.DataFrame(rows).T.sort_values("mean", kind="stable")
    return frame.drop(columns="mean").rename_axis("criterion")


def trained(splits: Splits, path: Path) -> nn.Module:
    """VGG16 after five epochs, kept in a file."""
    torch.manual_seed(0)
    model = VGG(16, splits.num_classes, splits.in_channels, splits.input_size)
    if path.exists():
        load_state(model, path)
        return model.eval()
    training = Training(epochs=5, lr=0.05, momentum=0.9, weight_decay=5e-4, lr_schedule="one_cycle")
    order = torch.Generator().manual_seed(0)
    fit(model, training.optimizer(model), splits.train, training, order, "Training VGG16")
    save_state(model, path)
    return model


def main() -> None:
    """Train, score, remove, and write results.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--train", type=int, default=10_000, help="pictures for training")
    add("--score", type=int, default=256, help="pictures that the criteria see")
    add("--test", type=int, default=256, help="pictures on which the loss is measured")
    add("--draws", type=int, default=3, help="runs of criteria that draw at random")
    add("--samples", type=int, default=32, help="of the scored pictures, for Shapley values")
    add("--points", type=int, default=32, help="removal counts in each layer")
    add("--work", type=Path, default=Path("outputs/layerwise_robustness"), help="is gone on from")
    add("--output", type=Path, default=Path(__file__).parent / "results.md")
    given = parser.parse_args()
    splits = fashion_mnist(size=32, train=given.train, score=given.score, test=given.test)
    weights = given.work / f"vgg16-{given.train}.safetensors"
    model = trained(splits, weights)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()[:12]
    wanted = (given.score, given.test, given.draws, given.points, given.samples, digest)
    accuracy = evaluate(model, splits.test).accuracy
    layers = choose_layers(model, find_structure(model, splits.input_size), splits.input_size)[0]
    found = robustness(
        model, layers, loader(splits.score, 64), loader(splits.test, 64), draws=given.draws,
        points=given.points, samples=given.samples,
        folder=given.work / "-".join(map(str, wanted)),
    )  # fmt: skip
    lines = [
        f"VGG16, trained on {given.train} pictures of Fashion-MNIST, {accuracy:.1%} right on the "
        f"{given.test} test pictures on which the loss is measured; {given.score} pictures for the "
        f"scores, {given.samples} of them for Shapley values, by two orders and their reverses; "
        f"{given.points} removal counts in each of {len(layers)} layers; {given.draws} draws of "
        "random and Shapley scores. Behind ± is half the 95 % interval over the test pictures.",
        "",
        markdown(table(found)),
    ]
    given.output.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
