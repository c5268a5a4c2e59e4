"""Coverage of the intervals of sampled Shapley values, on a network with known exact values."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from pruning_lab.attributions import ShapleyAttributionMetric
from pruning_lab.attributions.criteria.shapley_exact import ExactShapleyAttributionMetric
from pruning_lab.attributions.estimation.reduction import Estimate
from pruning_lab.attributions.unit_groups import units_of_module

SEEDS = 150
CASES: dict[str, dict[str, object]] = {
    "2 pairs": {"sv_samples": 4},
    "8 pairs": {"sv_samples": 16},
    "`evaluations`, both layers": {"evaluations": 30_000},
}
LEVELS = (0.8, 0.95)


def network() -> tuple[nn.Module, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Return a network with two hidden layers of ten units, and the 100 samples it is fitted to."""
    stream = torch.Generator().manual_seed(0)
    x = torch.randn(100, 6, generator=stream, dtype=torch.float64)
    target = (x[:, 0] * x[:, 1] + x[:, 2] > 0).long() + (x[:, 3] > 1).long()
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 10), nn.Tanh(), nn.Linear(10, 3)
    ).double()
    optimizer = torch.optim.Adam(model.parameters(), 0.03)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(model(x), target).backward()
        optimizer.step()
    return model.eval(), list(zip(x.split(50), target.split(50), strict=True))


def covered(reduction: str, options: dict[str, object], seeds: range) -> dict[float, float]:
    """Return, by level, the share of intervals of the sampling error that hold the exact score."""
    model, data = network()
    layers = [model[0], model[2]]
    exact = ExactShapleyAttributionMetric(model, data, F.cross_entropy, "cpu", reduction)
    truth = exact.run_layers(layers, True)
    hits: dict[float, list[np.ndarray]] = {level: [] for level in LEVELS}
    for estimates in _estimates(model, data, layers, reduction, options, seeds):
        for estimate, expected in zip(estimates, truth, strict=True):
            for level, inside in hits.items():
                low, high = estimate.interval("sampling_error", level)
                inside.append((low <= expected) & (expected <= high))
    return {level: float(np.mean(inside)) for level, inside in hits.items()}


def _estimates(
    model: nn.Module,
    data: list[tuple[torch.Tensor, torch.Tensor]],
    layers: list[nn.Module],
    reduction: str,
    options: dict[str, object],
    seeds: range,
) -> Iterator[list[Estimate]]:
    unit_groups = [units_of_module(layer) for layer in layers]
    for seed in seeds:
        metric = ShapleyAttributionMetric(
            model, data, F.cross_entropy, "cpu", reduction, seed=seed, **options
        )
        yield metric.estimate(unit_groups, True)


def section() -> list[str]:
    rows = []
    for reduction in ("mean", "mean_plus_2_std"):
        for name, options in tqdm(CASES.items(), desc=f"coverage, {reduction}"):
            shares = covered(reduction, options, range(SEEDS))
            cells = " | ".join(f"{100 * shares[level]:.1f} %" for level in LEVELS)
            rows.append(f"| `{reduction}` | {name} | {cells} |")
    return [
        "Share of the intervals of the sampling error (by Student's t) that hold the exact score, "
        f"over {SEEDS} seeds and both layers of 10 units of a small network, 100 samples; the "
        "exact scores by all coalitions. [method.md](method.md) has the intervals of the total "
        "error.",
        "",
        f"| scores | orders | {' | '.join(f'{level:.0%} intervals' for level in LEVELS)} |",
        f"| --- | --- |{' ---: |' * len(LEVELS)}",
        *rows,
    ]


if __name__ == "__main__":
    print("\n".join(section()))
