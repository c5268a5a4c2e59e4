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
from matplotlib.figure import Figure
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
from pruning_lab.compare import markdown, style_of
from pruning_lab.compare.style import bare
from pruning_lab.datasets import Splits, loader
from pruning_lab.datasets.cifar import cifar
from pruning_lab.datasets.digits import digits
from pruning_lab.datasets.fashion_mnist import fashion_mnist
from pruning_lab.errors import check_count
from pruning_lab.graph import find_structure, units_of
from pruning_lab.models.vgg import VGG
from pruning_lab.prunable import choose_layers
from pruning_lab.training import Training, evaluate, fit

Orders = dict[str, list[np.ndarray]]
"""criterion -> an order of removal for each of its draws"""

Totals = dict[str, dict[str, np.ndarray]]
"""layer -> criterion -> the total rise of the loss, (draws, samples)"""

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
    """Return the numbers of units removed: 1 to all, or ``points`` of them, evenly up to all."""
    check_count("points", points if points is not None else units)
    every = np.arange(1, units + 1)
    if points is None or points >= units:
        return every
    return np.unique(np.rint(np.linspace(0, units, points + 1)).astype(int))[1:]


def mean_rise(rises: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Average the rise after t removals over t = 1 ... units, by the trapezoid rule.

    ``rises`` (..., counts) are those after ``counts`` removals, the last of them all units; exact
    where no count is left out.
    """
    area = np.trapezoid(np.insert(rises, 0, 0, axis=-1), np.insert(counts, 0, 0), axis=-1)
    return (area + rises[..., -1] / 2) / counts[-1]


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
    totals = mean_rise(rises, counts) * counts[-1]
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
    draws: int = 2,
    points: int | None = 32,
    samples: int | None = None,
    folder: Path | None = None,
) -> Totals:
    """For each layer and criterion the total rise of the loss, (draws, samples).

    Units are put to 0 behind BatchNorm and non-linearity, one after another, one layer at a time.
    What a layer gave is kept in ``folder``: an interrupted run goes on from there.
    """
    found = {}
    for name, layer in tqdm(layers.items(), "Layers", disable=None):
        path = folder / f"{name}.npz" if folder else None
        if path is not None and path.exists():
            with np.load(path, allow_pickle=False) as kept:
                found[name] = dict(kept)
            assert found[name].keys() == PUBLISHED.keys(), f"{path} is of other criteria: delete it"
            continue
        orders = orders_of(model, layer, scored, device, draws, samples)
        found[name] = layer_totals(model, layer, orders, tested, device, points)
        if path is not None:
            _save(path, found[name])
    return found


def per_unit(found: Totals, units: Mapping[str, int]) -> dict[str, np.ndarray]:
    """For each criterion the mean rise of the loss per removed unit, (draws, samples)."""
    criteria = next(iter(found.values()))
    whole = sum(units[layer] for layer in found)
    return {name: sum(each[name] for each in found.values()) / whole for name in criteria}


def off_by(
    model: nn.Module,
    layer: nn.Module,
    orders: Orders,
    tested: DataLoader,
    device: str,
    points: int,
) -> float:
    """The largest error of a grid's mean total over the criteria, relative to every removal."""
    grids, every = (layer_totals(model, layer, orders, tested, device, n) for n in (points, None))
    return max(abs(grids[name].mean() / every[name].mean() - 1) for name in orders)


# -- the study --------------------------------------------------------------------------------

PUBLISHED = {
    "weight_norm": 0.47, "random": 0.48, "sensitivity": 0.47, "taylor": 0.47,
    "taylor_signed": 0.64, "apoz": 0.56, "shapley_mean": 0.35, "shapley_mean_plus_2_std": 0.31,
}  # fmt: skip
"""Ancona et al., VGG16 on CIFAR-10: 1000 test images, every single removal."""

BEST = "shapley_mean_plus_2_std"
"""The most robust of the published: the others are compared with it on the same pictures."""

LABELS = {"shapley_mean": "Shapley, mean", BEST: "Shapley, mean + 2 std"}
DATASETS = {
    "fashion_mnist": partial(fashion_mnist, size=32),
    "digits": partial(digits, size=32),
    "cifar10": cifar,
}


def interval(values: np.ndarray) -> tuple[float, float]:
    """The mean of (draws, samples) and half its 95 % interval over the samples, by Student's t."""
    samples = values.mean(0)
    half = stats.t.ppf(0.975, len(samples) - 1) * stats.sem(samples)
    return float(samples.mean()), float(half)


def results(found: Totals, units: Mapping[str, int]) -> pd.DataFrame:
    """One row for each criterion, and one for each criterion and layer.

    Columns: ``criterion``, ``layer`` ("all" for all together), ``units``, ``rise`` (per unit),
    ``half`` (of its 95 % interval over the pictures), ``lowest`` and ``highest`` (of the draws),
    ``more`` than BEST on the same pictures, and ``more_half``.
    """
    rows = []
    parts = {"all": found} | {layer: {layer: each} for layer, each in found.items()}
    for layer, part in parts.items():
        rises, count = per_unit(part, units), sum(units[name] for name in part)
        best = rises[BEST].mean(0, keepdims=True)
        for name, values in rises.items():
            draws = values.mean(1)
            more = interval(values.mean(0, keepdims=True) - best)
            row = (name, layer, count, *interval(values), draws.min(), draws.max(), *more)
            rows.append(row)
    columns = ["criterion", "layer", "units", "rise", "half", "lowest", "highest", "more",
               "more_half"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def label_of(criterion: str) -> str:
    """Its name for people."""
    return LABELS.get(criterion, style_of(criterion).label)


def table(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of all layers together, the most robust first, beside the published."""
    rows = {}
    whole = frame[frame["layer"] == "all"].sort_values("rise", kind="stable")
    for row in whole.itertuples():
        rows[label_of(row.criterion)] = {
            "rise of the loss per unit": f"{row.rise:.3f} ± {row.half:.3f}",
            "draws": "" if row.lowest == row.highest else f"{row.lowest:.3f} to {row.highest:.3f}",
            f"more than {label_of(BEST)}": "" if row.criterion == BEST
            else f"{row.more:.3f} ± {row.more_half:.3f}",
            "published, CIFAR-10": f"{PUBLISHED[row.criterion]:.2f}",
        }  # fmt: skip
    return pd.DataFrame(rows).T.rename_axis("criterion")


def figure(frame: pd.DataFrame) -> Figure:
    """All layers together with 95 % intervals beside the published, and layer by layer."""
    drawn = Figure(figsize=(10.6, 3.6), layout="constrained")
    left, right = drawn.subplots(1, 2, width_ratios=[1, 1.25])
    whole = frame[frame["layer"] == "all"].sort_values("rise", ascending=False, kind="stable")
    for place, row in enumerate(whole.itertuples()):
        color = style_of(row.criterion.split("_mean")[0]).color
        left.errorbar(row.rise, place, xerr=row.half, fmt="o", color=color, ms=5, capsize=2)
        left.plot(PUBLISHED[row.criterion], place, "d", color=color, mfc="w", ms=6)
    left.set_yticks(range(len(whole)), [label_of(name) for name in whole["criterion"]])
    left.set_xlabel("Rise of the loss per unit\n(filled: measured, 95 %; hollow: published)")
    left.set_xlim(left=0)
    left.grid(axis="x", color="0.92")
    left.set_axisbelow(True)
    layers = frame.loc[frame["layer"] != "all", "layer"].drop_duplicates()
    for name, rows in frame[frame["layer"] != "all"].groupby("criterion", sort=False):
        style = style_of(name.split("_mean")[0])
        line = "--" if name == "shapley_mean" else style.linestyle
        right.plot(range(len(rows)), rows["rise"], color=style.color, ls=line,
                   marker=style.marker, ms=3.5, lw=1.2, label=label_of(name))  # fmt: skip
    right.set_xticks(range(len(layers)), layers, rotation=60, ha="right", fontsize=7)
    right.set_ylabel("Rise of the loss per unit")
    right.axhline(0, color="0.2", lw=0.8)
    right.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    for ax in (left, right):
        bare(ax)
    return drawn


def trained(splits: Splits, epochs: int, path: Path) -> nn.Module:
    """VGG16 after so many epochs, kept in a file."""
    torch.manual_seed(0)
    model = VGG(16, splits.num_classes, splits.in_channels, splits.input_size)
    if path.exists():
        load_state(model, path)
        return model.eval()
    training = Training(
        epochs=epochs, lr=0.05, momentum=0.9, weight_decay=5e-4, lr_schedule="one_cycle"
    )
    order = torch.Generator().manual_seed(0)
    fit(model, training.optimizer(model), splits.train, training, order, "Training VGG16")
    save_state(model, path)
    return model


def parser() -> argparse.ArgumentParser:
    """What can be asked for; the defaults are those of the committed results."""
    made = argparse.ArgumentParser(description=__doc__)
    add = made.add_argument
    add("--dataset", choices=DATASETS, default="fashion_mnist")
    add("--train", type=int, default=5000, help="pictures for training")
    add("--epochs", type=int, default=4, help="of training")
    add("--score", type=int, default=256, help="pictures that the criteria see")
    add("--test", type=int, default=64, help="pictures on which the loss is measured")
    add("--draws", type=int, default=2, help="runs of criteria that draw at random")
    add("--samples", type=int, default=8, help="of the scored pictures, for Shapley values")
    add("--points", type=int, default=32, help="removal counts in each layer")
    add("--work", type=Path, default=Path("outputs/layerwise_robustness"), help="is gone on from")
    add("--output", type=Path, default=Path(__file__).parent, help="a folder")
    return made


def main() -> None:
    """Train, score, remove, and write results.md, results.csv and robustness.png."""
    given = parser().parse_args()
    splits = DATASETS[given.dataset](train=given.train, score=given.score, test=given.test)
    weights = given.work / f"vgg16-{given.dataset}-{given.train}-{given.epochs}.safetensors"
    model = trained(splits, given.epochs, weights)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()[:12]
    wanted = (
        given.dataset,
        given.score,
        given.test,
        given.draws,
        given.points,
        given.samples,
        digest,
    )
    layers = choose_layers(model, find_structure(model, splits.input_size), splits.input_size)[0]
    units = {name: units_of(layer) for name, layer in layers.items()}
    scored, tested = loader(splits.score, 64), loader(splits.test, 64)
    found = robustness(
        model, layers, scored, tested, draws=given.draws, points=given.points,
        samples=given.samples, folder=given.work / "-".join(map(str, wanted)),
    )  # fmt: skip
    *_, (checked, last) = ((k, each) for k, each in layers.items() if isinstance(each, nn.Conv2d))
    orders = orders_of(model, last, scored, "cpu", given.draws, given.samples)
    error = off_by(model, last, orders, tested, "cpu", given.points)
    accuracy = evaluate(model, splits.test).accuracy
    text = (
        f"VGG16, trained for {given.epochs} epochs on {given.train} pictures of {given.dataset}, "
        f"{accuracy:.1%} right on the {given.test} test pictures on which the loss is measured; "
        f"{given.score} pictures for the scores, {given.samples} of them for Shapley values, by "
        f"two orders and their reverses; {given.draws} draws of random and Shapley scores. In one "
        "layer after the other the units go, lowest score first; what the loss has risen by is "
        "summed over all removals and all layers and divided by the number of units. The sums are "
        f"by the trapezoid rule over {given.points} removal counts in each of {len(layers)} "
        f"layers; over every single removal, those of {checked} differ by at most {error:.2%}. "
        "Behind ± is half the 95 % interval over the test pictures, for this one network.\n\n"
    )
    frame = results(found, units)
    text += markdown(table(frame))
    given.output.mkdir(parents=True, exist_ok=True)
    frame.to_csv(given.output / "results.csv", index=False, float_format="%.6g")
    figure(frame).savefig(given.output / "robustness.png", dpi=150, metadata={"Software": None})
    (given.output / "results.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
