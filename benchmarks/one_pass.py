"""Activation and gradient criteria: one pass for all, against the textbook's pass for each."""

import statistics
from typing import Any

import numpy as np
import torch.nn.functional as F
from tqdm import tqdm

from benchmarks.network import Network
from benchmarks.timing import seconds_on
from pruning_lab.attributions import (
    APoZAttributionMetric,
    SensitivityAttributionMetric,
    TaylorAttributionMetric,
)
from pruning_lab.attributions.evidence.activations import run_together
from pruning_lab.attributions.unit_groups import units_of_module
from tests.oracles import textbook

REPEATS = 3
CRITERIA: dict[str, tuple[Any, dict[str, Any]]] = {
    "apoz": (APoZAttributionMetric, {}),
    "sensitivity": (SensitivityAttributionMetric, {}),
    "taylor": (TaylorAttributionMetric, {}),
    "taylor_signed": (TaylorAttributionMetric, {"signed": True}),
}
Scores = dict[str, list[np.ndarray]]
"""criterion -> per-sample scores of every layer"""


def metrics(model: Any, data: Any, device: str, reduction: str) -> list[Any]:
    return [
        kind(model, data, F.cross_entropy, device, reduction, **options)
        for kind, options in CRITERIA.values()
    ]


def by_textbook(network: Network) -> Scores:
    sites = [network.modules[place] for place in network.places.values()]
    return {
        name: [textbook.score(network.model, site, network.data, name) for site in sites]
        for name in CRITERIA
    }


def in_one_pass(network: Network) -> Scores:
    unit_groups = [units_of_module(layer) for layer in network.places]
    estimates = run_together(
        metrics(network.model, network.data, network.device, "none"), unit_groups, True
    )
    return {
        name: [estimate.scores for estimate in layers]
        for name, layers in zip(CRITERIA, estimates, strict=True)
    }


def section(network: Network) -> list[str]:
    """Return the section's lines: median seconds of both sides, and their largest difference."""
    seconds: dict[str, list[float]] = {"textbook": [], "one pass for all": []}
    scores: dict[str, Scores] = {}
    for _ in tqdm(range(REPEATS), desc="activation and gradient criteria"):
        for side, work in zip(seconds, (by_textbook, in_one_pass), strict=True):
            spent, scores[side] = seconds_on(network.device, lambda work=work: work(network))
            seconds[side].append(spent)
    theirs, ours = scores.values()
    apart = {
        name: max(
            np.abs(actual - expected).max() / np.abs(expected).max()
            for actual, expected in zip(ours[name], theirs[name], strict=True)
        )
        for name in CRITERIA
    }
    old, new = (statistics.median(times) for times in seconds.values())
    return [
        f"{', '.join(CRITERIA)}: {len(network.places)} layers, {network.samples} samples, "
        f"{network.accuracy:.1%} test accuracy. Seconds, medians of {REPEATS}, the sides in turn.",
        "",
        "| | seconds |",
        "| --- | ---: |",
        f"| textbook | {old:.1f} |",
        f"| one pass for all | {new:.2f} |",
        f"| ratio | **{old / new:.0f}** |",
        "",
        "Largest difference between per-sample scores, relative to the layer's largest: "
        f"{', '.join(f'{name} {gap:.0e}' for name, gap in apart.items())}.",
    ]
