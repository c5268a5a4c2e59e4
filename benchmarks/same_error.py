"""Cost of Shapley values at the error of the original's budget."""

import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import nn
from tqdm import tqdm

from benchmarks.network import Network
from benchmarks.shapley import SHARED, by_textbook, metric, shared_orders
from benchmarks.timing import seconds_on
from pruning_lab.attributions import ShapleyAttributionMetric

DEPTHS = ("conv1_2", "conv3_3", "conv5_1", "fc1")
"""Layers of different depth whose errors are measured."""

REFERENCE, SETS, RUNS, TURNS = 4, 3, 6, 2
"""Permutation pairs per sample in the reference, sets of shared permutations, our runs, timings."""

LADDER = (*range(2, 17), 19, 23, 27, 32, 38, 45, 54, 64, 76, 100)
"""Numbers of samples to try."""

CONF = OmegaConf.load(Path(__file__).parent.parent / "conf" / "metric" / "shapley.yaml")
DEFAULT = {"samples": CONF.samples, "orders": CONF.sv_samples}
"""The default settings of an experiment's Shapley values."""

REDUCTIONS = ("mean", "mean_plus_2_std")


def same_error(network: Network) -> list[str]:
    """Return the section's lines: seconds of each side at the error of the original's budget."""
    rows = []
    by_name = {name: layer for layer, name in network.names.items()}
    for name in tqdm(DEPTHS, desc="Shapley, the same error"):
        layer, results = by_name[name], {}
        reference = _reference(network, layer)
        shared = _shared_values(network, layer)
        for reduction in REDUCTIONS:
            expected, uncertain = reference[reduction]
            theirs = _rms([_reduced(values, reduction) for values in shared], expected, uncertain)
            ours_of = partial(_ours, network, layer, reduction)
            for samples in LADDER:
                runs = [ours_of(seed, samples) for seed in range(RUNS)]
                ours = _rms([scores for _, scores in runs], expected, uncertain)
                if ours <= theirs or samples == LADDER[-1]:
                    break
            default = [ours_of(seed, **DEFAULT)[1] for seed in range(RUNS)]
            results[reduction] = (theirs, samples, ours, _rms(default, expected, uncertain))
        old, new = seconds_in_turn(network, layer, {k: row[1] for k, row in results.items()})
        for reduction, (theirs, samples, ours, default) in results.items():
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
    """Return mean seconds of the original's budget, and of ours by reduction, measured in turn."""
    old: list[float] = []
    new: dict[str, list[float]] = {reduction: [] for reduction in samples}
    for turn in range(TURNS):
        old.append(_textbook_seconds(network, layer))
        for reduction, count in samples.items():
            new[reduction].append(_ours(network, layer, reduction, turn, count)[0])
    return statistics.mean(old), {name: statistics.mean(spent) for name, spent in new.items()}


def _textbook_seconds(network: Network, layer: nn.Module) -> float:
    """Extrapolate the original's seconds from the pass up to the layer and one permutation."""
    before, once = (
        seconds_on(network.device, by_textbook(network, layer, shared_orders(layer, count)))[0]
        for count in (0, 1)
    )
    return before + SHARED * (once - before)


def _reference(network: Network, layer: nn.Module) -> dict[str, tuple[np.ndarray, float]]:
    """Return scores by many permutation pairs, and their squared l2 error from the spread."""
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

    references = {}
    for reduction in REDUCTIONS:
        halves = reduced(pairs[::2], reduction) - reduced(pairs[1::2], reduction)
        references[reduction] = reduced(pairs, reduction), float(np.square(halves).sum() / 4)
    return references


def _shared_values(network: Network, layer: nn.Module) -> list[np.ndarray]:
    """Return per-sample values by sets of shared permutations, as in the original."""
    return [
        metric(network, permutations=shared_orders(layer, SHARED, 100 + number)).run(layer, True)
        for number in range(SETS)
    ]


def _reduced(rows: np.ndarray, reduction: str) -> np.ndarray:
    return rows.mean(0) + (2 * rows.std(0) if reduction == "mean_plus_2_std" else 0)


def _ours(
    network: Network, layer: nn.Module, reduction: str, seed: int, samples: int, orders: int = 4
) -> tuple[float, np.ndarray]:
    """Return seconds and scores on a random subset of ``samples`` samples."""
    ((x, target),) = network.data
    rows = torch.from_numpy(np.random.default_rng(seed).permutation(len(x))[:samples]).to(x.device)
    shapley = ShapleyAttributionMetric(
        network.model, [(x[rows], target[rows])], F.cross_entropy, network.device, reduction,
        sv_samples=orders, seed=seed,
    )  # fmt: skip
    return seconds_on(network.device, partial(shapley.run, layer, True))


def _rms(found: Sequence[np.ndarray], expected: np.ndarray, uncertain: float) -> float:
    """Return the relative root mean squared l2 error, corrected for the reference's error."""
    squares = np.mean([np.square(scores - expected).sum() for scores in found]) - uncertain
    return float(np.sqrt(max(squares, 0) / (np.square(expected).sum() - uncertain)))
