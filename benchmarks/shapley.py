"""Cost and repeatability of Shapley values, against the textbook's algorithm."""

import statistics
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import nn
from tqdm import tqdm

from benchmarks.network import Network
from benchmarks.timing import seconds_on
from pruning_lab.attributions import ShapleyAttributionMetric
from pruning_lab.graph.kinds import units_of
from tests.oracles import textbook

ORDERS = 1
"""Number of shared permutations on which each side is timed, in each layer."""

SHARED = 5
"""The original's budget: number of permutations that all samples share."""

FEW, MANY = 4, 16
"""Permutations per sample in the expensive layers, and in the others."""

DEAR = [f"conv{block}_{k}" for block in (1, 2, 3, 4) for k in (1, 2, 3)]
COMPARED = ("conv4_3", "conv5_1", "conv5_2", "conv5_3", "fc1", "fc2")
"""Layers in which the textbook is run as well; the others take minutes."""


def metric(
    network: Network, reduction: str = "none", **options: object
) -> ShapleyAttributionMetric:
    return ShapleyAttributionMetric(
        network.model, network.data, F.cross_entropy, network.device, reduction, **options
    )


def shared_orders(layer: nn.Module, count: int, seed: int = 0) -> list[np.ndarray]:
    stream = np.random.default_rng(seed)
    return [stream.permutation(units_of(layer)) for _ in range(count)]


# -- the same permutations --------------------------------------------------------------------


def same_permutations(network: Network) -> list[str]:
    """Time both sides on the same permutations, layer by layer; the sides alternate."""
    precisions = ("fp32", "bf16") if _has_bf16(network.device) else ("fp32",)
    sides = ("textbook", *precisions)
    rows, total, apart, ranks = [], dict.fromkeys(sides, 0.0), [], []
    for layer, name in tqdm(network.names.items(), desc="Shapley, the same permutations"):
        seconds, scores = _both_sides(network, layer, sides)
        medians = {side: statistics.median(seconds[side]) for side in sides}
        apart.append(_distance(scores["fp32"], scores["textbook"]))
        cells = [f"{medians[side]:.2f}" for side in sides]
        cells += [f"{medians['textbook'] / medians[side]:.2f}" for side in precisions]
        cells.append(f"{apart[-1]:.0e}")
        if "bf16" in scores:
            ranks.append(spearmanr(scores["bf16"], scores["fp32"])[0])
            cells.append(f"{ranks[-1]:.4f}")
        rows.append(f"| {name} | {' | '.join(cells)} |")
        total = {side: total[side] + medians[side] for side in sides}
    cells = [f"{spent:.1f}" for spent in total.values()]
    cells += [f"**{total['textbook'] / total[side]:.2f}**" for side in precisions]
    cells += [f"{max(apart):.0e}", *([f"{min(ranks):.4f}"] if ranks else [])]
    head = [*sides, *(f"ratio, {side}" for side in precisions), "apart"]
    head += ["Spearman"] if ranks else []
    return [
        f"Seconds for one order that all {network.samples} samples share (of {ORDERS} timed, the "
        "sides in turn, the median). *Apart*: l2 distance of the mean scores by these orders, "
        "relative to the textbook's."
        + (" *Spearman*: of bf16's scores with fp32's." if ranks else "")
        + ("" if len(precisions) > 1 else " This processor has no arithmetic in bfloat16."),
        "",
        f"| layer | {' | '.join(head)} |",
        f"| --- |{' ---: |' * len(head)}",
        *rows,
        f"| all | {' | '.join(cells)} |",
    ]


def _both_sides(
    network: Network, layer: nn.Module, sides: Sequence[str]
) -> tuple[dict[str, list[float]], dict[str, np.ndarray]]:
    """Return, by side, the seconds of each permutation, and mean scores over all of them."""
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    values: dict[str, list[np.ndarray]] = {side: [] for side in sides}
    for order in shared_orders(layer, ORDERS):
        for side in sides:
            if side == "textbook":
                work = by_textbook(network, layer, [order])
            else:
                shapley = metric(network, permutations=[order], precision=side)
                work = partial(shapley.run, layer, True)
            spent, scores = seconds_on(network.device, work)
            seconds[side].append(spent)
            values[side].append(scores)
    return seconds, {side: np.mean(scores, axis=(0, 1)) for side, scores in values.items()}


def by_textbook(
    network: Network, layer: nn.Module, orders: Sequence[np.ndarray]
) -> partial[np.ndarray]:
    place = network.places[layer]
    return partial(textbook.shapley, network.modules, place, network.data, orders)


def _distance(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def _has_bf16(device: str) -> bool:
    """Return True if the device computes in bfloat16, instead of only storing it."""
    if device != "cpu":
        return torch.cuda.is_bf16_supported()
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


# -- the same order again ---------------------------------------------------------------------


def repeated_order(network: Network) -> list[str]:
    """Correlate the ranks of two runs with different seeds on the same samples."""
    rows, ranks, total = [], [], 0.0
    for layer, name in tqdm(network.names.items(), desc="Shapley, the same order again"):
        orders = FEW if name in DEAR else MANY
        runs = [
            seconds_on(
                network.device,
                partial(metric(network, "mean", sv_samples=orders, seed=seed).run, layer, True),
            )
            for seed in range(2)
        ]
        spent = statistics.mean(seconds for seconds, _ in runs)
        ranks.append(float(spearmanr(*(scores for _, scores in runs))[0]))
        total += spent
        theirs = f"{_shared_rank(network, layer):.3f}" if name in COMPARED else ""
        rows.append(f"| {name} | {theirs} | {orders} | {ranks[-1]:.3f} | {spent:.1f} |")
    return [
        "Spearman's correlation of the scores of two runs that differ in the seed of the orders "
        f"alone, on the same {network.samples} samples. Textbook: by {SHARED} orders that all "
        "samples share, in some of the layers. pruning_lab: by orders of their own for all "
        f"samples, {FEW} in the layers that cost most, {MANY} in the last, which cost little.",
        "",
        "| layer | textbook | orders a sample | pruning_lab | seconds, one run |",
        "| --- | ---: | ---: | ---: | ---: |",
        *rows,
        f"| median | | | **{np.median(ranks):.3f}** | |",
        f"| smallest | | | **{min(ranks):.3f}** | |",
        f"| all | | | | {total:.0f} |",
    ]


def _shared_rank(network: Network, layer: nn.Module) -> float:
    runs = [
        metric(network, "mean", permutations=shared_orders(layer, SHARED, seed)).run(layer, True)
        for seed in (200, 201)
    ]
    return float(spearmanr(*runs)[0])
