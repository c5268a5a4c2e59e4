"""Measure how the loss rises when units are removed in each criterion's order, layer by layer."""

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
from pruning_lab.attributions.evidence.removals import RemovalMetric, first_of
from pruning_lab.compare import markdown, style_of
from pruning_lab.compare.style import bare
from pruning_lab.coupling.structure import find_structure
from pruning_lab.datasets import Splits, loader
from pruning_lab.datasets.cifar import cifar
from pruning_lab.datasets.digits import digits
from pruning_lab.datasets.fashion_mnist import fashion_mnist
from pruning_lab.errors import check_count
from pruning_lab.experiment.network import choose_layers
from pruning_lab.graph.kinds import units_of
from pruning_lab.models.vgg import VGG
from pruning_lab.pruner.saved_model import load_state, save_state
from pruning_lab.tasks import Classification
from pruning_lab.training.evaluation import evaluate
from pruning_lab.training.fit import fit
from pruning_lab.training.recipe import Training

TASK = Classification()

Orders = dict[str, list[np.ndarray]]
"""criterion -> order of removal of each of its draws"""

Totals = dict[str, dict[str, np.ndarray]]
"""layer -> criterion -> total rise of the loss, (draws, samples)"""

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
    """Return the orders in which each criterion removes a layer's units, lowest score first.

    Random criteria have ``draws`` orders. Shapley values are those of ``samples`` of the pictures,
    by two permutations and their reverses for each; the variance that these add to the spread over
    the pictures is subtracted, as ``mean_plus_2_std`` does.
    """
    given = (model, scored, F.cross_entropy, device)
    orders = {
        name: [_ascending(make(*given).run(layer, True))] for name, make in DETERMINISTIC.items()
    }
    for seed in range(draws):
        first, second = (
            ShapleyAttributionMetric(*given, "none", sv_samples=2, samples=samples, seed=pair).run(
                layer, True
            )
            for pair in (2 * seed, 2 * seed + 1)
        )
        rows, noise = (first + second) / 2, ((first - second) ** 2 / 4).mean(0)
        spread = np.sqrt(np.clip(rows.var(0) - noise, 0, None))
        drawn = {
            "random": RandomAttributionMetric(*given, seed=seed).run(layer, True),
            "shapley_mean": rows.mean(0),
            "shapley_mean_plus_2_std": rows.mean(0) + 2 * spread,
        }
        for name, scores in drawn.items():
            orders.setdefault(name, []).append(_ascending(scores))
    return orders


def _ascending(scores: np.ndarray) -> np.ndarray:
    return np.argsort(scores, kind="stable")


def grid(units: int, points: int | None) -> np.ndarray:
    """Return the numbers of units to remove: 1 to all, or ``points`` of them, evenly spaced."""
    check_count("points", points if points is not None else units)
    counts = np.arange(1, units + 1)
    if points is None or points >= units:
        return counts
    return np.unique(np.rint(np.linspace(0, units, points + 1)).astype(int))[1:]


def mean_rise(rises: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Average the rise after t removals over t = 1 ... units, by the trapezoid rule.

    ``rises`` (..., counts) are those after ``counts`` removals, of which the last is all units.
    Exact if ``counts`` is complete.
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
    """Return each criterion's total rise of the loss, (draws, samples), over a layer's removals."""
    counts = grid(units_of(layer), points)
    pairs = [(name, order) for name, drawn in orders.items() for order in drawn]
    removed = np.concatenate([first_of(order, counts) for _, order in pairs])
    metric = RemovalMetric(model, tested, F.cross_entropy, device, "none", removed=removed)
    rises = metric.run(layer, True).reshape(-1, len(pairs), len(counts))
    totals = mean_rise(rises, counts) * counts[-1]
    drawn_totals: dict[str, list[np.ndarray]] = {}
    for (name, _), total in zip(pairs, totals.T, strict=True):
        drawn_totals.setdefault(name, []).append(total)
    return {name: np.stack(draws) for name, draws in drawn_totals.items()}


def _save(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an npz file atomically."""
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
    """Return, for each layer and criterion, the total rise of the loss, (draws, samples).

    Units are set to 0 after BatchNorm and non-linearity, one after another, one layer at a time.
    Results of each layer are stored in ``folder``; an interrupted run resumes from there.
    """
    totals = {}
    for name, layer in tqdm(layers.items(), "Layers", disable=None):
        path = folder / f"{name}.npz" if folder else None
        if path is not None and path.exists():
            with np.load(path, allow_pickle=False) as file:
                totals[name] = dict(file)
            assert totals[name].keys() == PUBLISHED.keys(), f"{path} has other criteria: delete it"
            continue
        orders = orders_of(model, layer, scored, device, draws, samples)
        totals[name] = layer_totals(model, layer, orders, tested, device, points)
        if path is not None:
            _save(path, totals[name])
    return totals


def per_unit(found: Totals, units: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Return each criterion's mean rise of the loss per removed unit, (draws, samples)."""
    criteria = next(iter(found.values()))
    count = sum(units[layer] for layer in found)
    return {name: sum(totals[name] for totals in found.values()) / count for name in criteria}


def off_by(
    model: nn.Module,
    layer: nn.Module,
    orders: Orders,
    tested: DataLoader,
    device: str,
    points: int,
) -> float:
    """Return the largest relative error, over criteria, of mean totals on a grid of removals."""
    grids, every = (layer_totals(model, layer, orders, tested, device, n) for n in (points, None))
    return max(abs(grids[name].mean() / every[name].mean() - 1) for name in orders)


# -- the study --------------------------------------------------------------------------------

PUBLISHED = {
    "weight_norm": 0.47, "random": 0.48, "sensitivity": 0.47, "taylor": 0.47,
    "taylor_signed": 0.64, "apoz": 0.56, "shapley_mean": 0.35, "shapley_mean_plus_2_std": 0.31,
}  # fmt: skip
"""Rises of Ancona et al., VGG16 on CIFAR-10: 1000 test images, every single removal."""

BEST = "shapley_mean_plus_2_std"
"""The most robust published criterion; the others are compared with it on the same pictures."""

LABELS = {"shapley_mean": "Shapley, mean", BEST: "Shapley, mean + 2 std"}
DATASETS = {
    "fashion_mnist": partial(fashion_mnist, size=32),
    "digits": partial(digits, size=32),
    "cifar10": cifar,
}


def interval(values: np.ndarray) -> tuple[float, float]:
    """Return the mean of (draws, samples), half its 95 % interval over samples by Student's t."""
    samples = values.mean(0)
    half = stats.t.ppf(0.975, len(samples) - 1) * stats.sem(samples)
    return float(samples.mean()), float(half)


def results(found: Totals, units: Mapping[str, int]) -> pd.DataFrame:
    """Return one row for each criterion, and one for each criterion and layer.

    Columns: ``criterion``, ``layer`` ("all" for all together), ``units``, ``rise`` (per unit),
    ``half`` (of its 95 % interval over the pictures), ``lowest`` and ``highest`` (of the draws),
    ``more`` than BEST on the same pictures, and ``more_half``.
    """
    rows = []
    parts = {"all": found} | {layer: {layer: totals} for layer, totals in found.items()}
    for layer, part in parts.items():
        rises, count = per_unit(part, units), sum(units[name] for name in part)
        best = rises[BEST].mean(0, keepdims=True)
        for name, values in rises.items():
            draws = values.mean(1)
            gap = interval(values.mean(0, keepdims=True) - best)
            row = (name, layer, count, *interval(values), draws.min(), draws.max(), *gap)
            rows.append(row)
    columns = ["criterion", "layer", "units", "rise", "half", "lowest", "highest", "more",
               "more_half"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def label_of(criterion: str) -> str:
    """Return a criterion's display name."""
    return LABELS.get(criterion, style_of(criterion).label)


def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of all layers together, most robust first, with the published values."""
    rows = {}
    overall = frame[frame["layer"] == "all"].sort_values("rise", kind="stable")
    for row in overall.itertuples():
        rows[label_of(row.criterion)] = {
            "rise of the loss per unit": f"{row.rise:.3f} ± {row.half:.3f}",
            "draws": "" if row.lowest == row.highest else f"{row.lowest:.3f} to {row.highest:.3f}",
            f"more than {label_of(BEST)}": "" if row.criterion == BEST
            else f"{row.more:.3f} ± {row.more_half:.3f}",
            "published, CIFAR-10": f"{PUBLISHED[row.criterion]:.2f}",
        }  # fmt: skip
    return pd.DataFrame(rows).T.rename_axis("criterion")


def figure(frame: pd.DataFrame) -> Figure:
    """Draw all layers together, with 95 % intervals and published values, and layer by layer."""
    drawn = Figure(figsize=(10.6, 3.6), layout="constrained")
    left, right = drawn.subplots(1, 2, width_ratios=[1, 1.25])
    overall = frame[frame["layer"] == "all"].sort_values("rise", ascending=False, kind="stable")
    for place, row in enumerate(overall.itertuples()):
        color = style_of(row.criterion.split("_mean")[0]).color
        left.errorbar(row.rise, place, xerr=row.half, fmt="o", color=color, ms=5, capsize=2)
        left.plot(PUBLISHED[row.criterion], place, "d", color=color, mfc="w", ms=6)
    left.set_yticks(range(len(overall)), [label_of(name) for name in overall["criterion"]])
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
    """Train VGG16 and save it to ``path``, or load it from there."""
    torch.manual_seed(0)
    model = VGG(16, splits.num_classes, splits.in_channels, splits.input_size)
    if path.exists():
        load_state(model, path)
        return model.eval()
    training = Training(
        epochs=epochs, lr=0.05, momentum=0.9, weight_decay=5e-4, lr_schedule="one_cycle"
    )
    order = torch.Generator().manual_seed(0)
    fit(model, training.optimizer(model), splits.train, training, TASK, order, "Training VGG16")
    save_state(model, path)
    return model


def parser() -> argparse.ArgumentParser:
    """Return the command's parser; the defaults are those of the committed results."""
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
    add("--work", type=Path, default=Path("outputs/layerwise_robustness"), help="to resume from")
    add("--output", type=Path, default=Path(__file__).parent, help="a folder")
    return made


def main() -> None:
    """Train, score, remove, and write results.md, results.csv and robustness.png."""
    given = parser().parse_args()
    splits = DATASETS[given.dataset](train=given.train, score=given.score, test=given.test)
    weights = given.work / f"vgg16-{given.dataset}-{given.train}-{given.epochs}.safetensors"
    model = trained(splits, given.epochs, weights)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()[:12]
    wanted = (given.dataset, given.score, given.test, given.draws, given.points, given.samples,
              digest)  # fmt: skip
    layers = choose_layers(model, find_structure(model, splits.input_size), splits.input_size)[0]
    units = {name: units_of(layer) for name, layer in layers.items()}
    scored, tested = loader(splits.score, 64), loader(splits.test, 64)
    totals = robustness(
        model, layers, scored, tested, draws=given.draws, points=given.points,
        samples=given.samples, folder=given.work / "-".join(map(str, wanted)),
    )  # fmt: skip
    *_, (checked, last) = ((k, v) for k, v in layers.items() if isinstance(v, nn.Conv2d))
    orders = orders_of(model, last, scored, "cpu", given.draws, given.samples)
    error = off_by(model, last, orders, tested, "cpu", given.points)
    accuracy = evaluate(model, splits.test, TASK).values["accuracy"]
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
    frame = results(totals, units)
    text += markdown(table(frame))
    given.output.mkdir(parents=True, exist_ok=True)
    frame.to_csv(given.output / "results.csv", index=False, float_format="%.6g")
    figure(frame).savefig(given.output / "robustness.png", dpi=150, metadata={"Software": None})
    (given.output / "results.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
