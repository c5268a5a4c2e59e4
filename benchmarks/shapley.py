"""What Shapley values cost, beside the textbook's way of them, and how sure they are."""

import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from scipy.stats import spearmanr
from torch import nn
from tqdm import tqdm

from benchmarks.network import Network
from benchmarks.timing import seconds_on
from pruning_lab.attributions import ShapleyAttributionMetric
from pruning_lab.graph import units_of
from tests.oracles import textbook

ORDERS = 1
"""How many orders that all samples share each side is timed on, in each layer."""

SHARED = 5
"""The original's budget: so many orders that all samples share."""

DEPTHS = ("conv1_2", "conv3_3", "conv5_1", "fc1")
"""Layers of different depth whose errors are measured."""

REFERENCE, SETS, RUNS, TURNS = 4, 3, 6, 2
"""Pairs of orders a sample in the reference, sets of shared orders, runs of ours, timings."""

LADDER = (*range(2, 17), 19, 23, 27, 32, 38, 45, 54, 64, 76, 100)
"""How many of the samples are used."""

CONF = OmegaConf.load(Path(__file__).parent.parent / "conf" / "metric" / "shapley.yaml")
DEFAULT = {"samples": CONF.samples, "orders": CONF.sv_samples}
"""What an experiment's Shapley values take where nothing else is asked for."""

FEW, MANY = 4, 16
"""Orders a sample in the layers that are dear, and in the others."""

DEAR = [f"conv{block}_{k}" for block in (1, 2, 3, 4) for k in (1, 2, 3)]
COMPARED = ("conv4_3", "conv5_1", "conv5_2", "conv5_3", "fc1", "fc2")
"""Layers in which the textbook's way is looked at as well: the others take minutes."""

REDUCTIONS = ("mean", "mean_plus_2_std")


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
    """Both sides on the same orders, layer by layer and order by order, in turn."""
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
    cells = [f"{each:.1f}" for each in total.values()]
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
    """Seconds of each order, and mean scores by all of them, side by side."""
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    values: dict[str, list[np.ndarray]] = {side: [] for side in sides}
    for order in shared_orders(layer, ORDERS):
        for side in sides:
            if side == "textbook":
                work = _by_textbook(network, layer, [order])
            else:
                each = metric(network, permutations=[order], precision=side)
                work = partial(each.run, layer, True)
            spent, found = seconds_on(network.device, work)
            seconds[side].append(spent)
            values[side].append(found)
    return seconds, {side: np.mean(found, axis=(0, 1)) for side, found in values.items()}


def _by_textbook(
    network: Network, layer: nn.Module, orders: Sequence[np.ndarray]
) -> partial[np.ndarray]:
    place = network.places[layer]
    return partial(textbook.shapley, network.modules, place, network.data, orders)


def _distance(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def _has_bf16(device: str) -> bool:
    """Whether the device computes in bfloat16, or only stores it."""
    if device != "cpu":
        return torch.cuda.is_bf16_supported()
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


# -- the same error ---------------------------------------------------------------------------


def same_error(network: Network) -> list[str]:
    """How many seconds each side takes to the error that the original's budget leaves."""
    rows = []
    by_name = {name: layer for layer, name in network.names.items()}
    for name in tqdm(DEPTHS, desc="Shapley, the same error"):
        layer, found = by_name[name], {}
        reference = _reference(network, layer)
        shared = _shared_values(network, layer)
        for reduction in REDUCTIONS:
            expected, uncertain = reference[reduction]
            theirs = _rms([_reduced(each, reduction) for each in shared], expected, uncertain)
            ours_of = partial(_ours, network, layer, reduction)
            for samples in LADDER:
                runs = [ours_of(seed, samples) for seed in range(RUNS)]
                ours = _rms([scores for _, scores in runs], expected, uncertain)
                if ours <= theirs or samples == LADDER[-1]:
                    break
            default = [ours_of(seed, **DEFAULT)[1] for seed in range(RUNS)]
            found[reduction] = (theirs, samples, ours, _rms(default, expected, uncertain))
        old, new = seconds_in_turn(network, layer, {k: each[1] for k, each in found.items()})
        for reduction, (theirs, samples, ours, default) in found.items():
            bold = "**" if ours <= theirs else ""
            rows.append(
                f"| {name} | `{reduction}` | {theirs:.0%} | {old:.1f} | {samples} | {ours:.0%} | "
                f"{new[reduction]:.2f} | {bold}{old / new[reduction]:.0f}{bold} | {default:.0%} |"
            )
    return [
        f"Error: root of the mean squared l2 distance to the scores over all {network.samples} "
        f"samples by {REFERENCE} pairs of orders for each, relative to these; what these are "
        f"uncertain by themselves is taken off. Textbook: {SHARED} orders that all samples share, "
        f"{SETS} sets of them; its seconds are those of one pass up to the layer and {SHARED} "
        "times those of one order. pruning_lab: the fewest samples whose scores, by 4 orders of "
        f"their own, have at most that error in {RUNS} runs with other samples and orders; all "
        f"that a call costs is in its seconds (both sides in turn, means of {TURNS}), what the "
        "choice of the samples adds is in the error. *Default*: the error of {orders} orders for "
        "each of {samples} samples; one pair does not tell what the draws add to the spread, so "
        "its `mean_plus_2_std` is too high. In the last layers what either side pays is mostly the "
        "pass up to the layer. All errors are estimates themselves, and the first of many numbers "
        "of samples that does is a lucky one: some too few.".format(**DEFAULT),
        "",
        "| layer | scores | textbook's error | seconds | samples | error | seconds | ratio | "
        "default |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *rows,
    ]


def seconds_in_turn(
    network: Network, layer: nn.Module, samples: dict[str, int]
) -> tuple[float, dict[str, float]]:
    """What the original's budget costs, and ours with so many samples: the sides in turn, means."""
    old: list[float] = []
    new: dict[str, list[float]] = {reduction: [] for reduction in samples}
    for turn in range(TURNS):
        old.append(_textbook_seconds(network, layer))
        for reduction, count in samples.items():
            new[reduction].append(_ours(network, layer, reduction, turn, count)[0])
    return statistics.mean(old), {name: statistics.mean(each) for name, each in new.items()}


def _textbook_seconds(network: Network, layer: nn.Module) -> float:
    """What the original's budget costs, by one order and one pass up to the layer."""
    before, once = (
        seconds_on(network.device, _by_textbook(network, layer, shared_orders(layer, count)))[0]
        for count in (0, 1)
    )
    return before + SHARED * (once - before)


def _reference(network: Network, layer: nn.Module) -> dict[str, tuple[np.ndarray, float]]:
    """Scores by many pairs of orders, and their squared l2 error by their spread over pairs."""
    pairs = np.stack(
        [
            metric(network, sv_samples=2, seed=1000 + pair).run(layer, True)
            for pair in range(REFERENCE)
        ]
    )

    def reduced(pairs: np.ndarray, reduction: str) -> np.ndarray:
        rows, noise = pairs.mean(0), pairs.var(0, ddof=1).mean(0) / len(pairs)
        if reduction == "mean":
            return rows.mean(0)
        return rows.mean(0) + 2 * np.sqrt(np.clip(rows.var(0) - noise, 0, None))

    found = {}
    for reduction in REDUCTIONS:
        halves = reduced(pairs[::2], reduction) - reduced(pairs[1::2], reduction)
        found[reduction] = (reduced(pairs, reduction), float(np.square(halves).sum() / 4))
    return found


def _shared_values(network: Network, layer: nn.Module) -> list[np.ndarray]:
    """Per-sample values by sets of orders that all samples share, as the original has them."""
    return [
        metric(network, permutations=shared_orders(layer, SHARED, 100 + number)).run(layer, True)
        for number in range(SETS)
    ]


def _reduced(rows: np.ndarray, reduction: str) -> np.ndarray:
    return rows.mean(0) + (2 * rows.std(0) if reduction == "mean_plus_2_std" else 0)


def _ours(
    network: Network, layer: nn.Module, reduction: str, seed: int, samples: int, orders: int = 4
) -> tuple[float, np.ndarray]:
    """Seconds and scores by some of the samples."""
    ((x, target),) = network.data
    some = torch.from_numpy(np.random.default_rng(seed).permutation(len(x))[:samples]).to(x.device)
    each = ShapleyAttributionMetric(
        network.model, [(x[some], target[some])], F.cross_entropy, network.device, reduction,
        sv_samples=orders, seed=seed,
    )  # fmt: skip
    return seconds_on(network.device, partial(each.run, layer, True))


def _rms(found: Sequence[np.ndarray], expected: np.ndarray, uncertain: float) -> float:
    squares = np.mean([np.square(each - expected).sum() for each in found]) - uncertain
    return float(np.sqrt(max(squares, 0) / (np.square(expected).sum() - uncertain)))


# -- the same order again ---------------------------------------------------------------------


def repeated_order(network: Network) -> list[str]:
    """Rank correlation of two runs with other seeds on the same samples."""
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
