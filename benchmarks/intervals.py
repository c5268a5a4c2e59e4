"""Measure the coverage of intervals of the total error, and the error rate of `separated`.

    python -m benchmarks.intervals        # the tables in docs/method.md

Per-sample scores are drawn from distributions with known exact scores, or from the scores of a
small network on 1197 pictures.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import norm
from sklearn.datasets import load_digits
from torch import nn

from pruning_lab.attributions import ShapleyAttributionMetric
from pruning_lab.attributions.estimation.reduction import Estimate, Reducer
from pruning_lab.attributions.estimation.stopping import ENOUGH, is_separated


class Distribution(NamedTuple):
    """A distribution of mean 0: its sampler, standard deviation and mean of abs(x)."""

    draw: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
    std: float
    mean_abs: float


def _mixture(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return random.normal(size=shape) + 10 * (random.random(shape) < 0.05) - 0.5


def _folded(mean: float) -> float:
    """Return the mean of abs(x) for a normal x with this mean and variance 1."""
    return float(2 * norm.pdf(mean) + mean * (1 - 2 * norm.cdf(-mean)))


ROOT_E = float(np.exp(0.5))
DISTRIBUTIONS = {
    "normal": Distribution(lambda random, shape: random.normal(size=shape), 1, _folded(0)),
    "exponential": Distribution(
        lambda random, shape: random.exponential(size=shape) - 1, 1, float(2 / np.e)
    ),
    "lognormal, sigma 1": Distribution(
        lambda random, shape: random.lognormal(size=shape) - ROOT_E,
        float(np.sqrt(np.e * (np.e - 1))),
        float(2 * ROOT_E * (2 * norm.cdf(0.5) - 1)),
    ),
    "Student t, 3 degrees": Distribution(
        lambda random, shape: random.standard_t(3, size=shape),
        float(np.sqrt(3)),
        float(2 * np.sqrt(3) / np.pi),
    ),
    "normal, 5 % shifted by 10": Distribution(
        _mixture, float(np.sqrt(1 + 0.05 * 0.95 * 100)), 0.95 * _folded(-0.5) + 0.05 * _folded(9.5)
    ),
}
REDUCTIONS = ("mean", "mean_abs", "mean_plus_2_std")
SAMPLES = (16, 64, 256)
REPETITIONS = 10_000


def exact(distribution: Distribution, reduction: str) -> float:
    """Return the score on all data."""
    if reduction == "mean_plus_2_std":
        return 2 * distribution.std
    return distribution.mean_abs if reduction == "mean_abs" else 0.0


def estimated(rows: np.ndarray, reduction: str = "mean") -> Estimate:
    """Return the estimate from per-sample scores (samples, units) without sampling error."""
    reducer = Reducer(reduction)
    reducer.add(torch.from_numpy(rows))
    return reducer.estimate()


def covered(
    name: str, reduction: str, samples: int, repetitions: int = REPETITIONS
) -> tuple[float, float]:
    """Return the share of 95 % intervals with the exact score: by Student's t, and as built."""
    distribution = DISTRIBUTIONS[name]
    rows = distribution.draw(np.random.default_rng(samples), (samples, repetitions))
    truth, estimate = exact(distribution, reduction), estimated(rows, reduction)
    shares = []
    for variant in (replace(estimate, skewness=None), estimate):
        low, high = variant.interval()
        shares.append(float(((low <= truth) & (truth <= high)).mean()))
    return shares[0], shares[1]


def contributions() -> np.ndarray:
    """Return Shapley values (pictures, units) by one pair of permutations per picture.

    They are those of the first hidden layer of a network trained on 600 digits, for 1197 others,
    without units whose values are 0 on all pictures.
    """
    x, y = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
    model = nn.Sequential(*model, nn.Linear(64, 10)).double()
    parts = torch.randperm(len(x)).split((600, len(x) - 600))
    (x_train, x_score), (y_train, y_score) = (
        [values[part] for part in parts] for values in (x / 16, y)
    )
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(600):
        optimizer.zero_grad()
        F.cross_entropy(model(x_train), y_train).backward()
        optimizer.step()
    metric = ShapleyAttributionMetric(
        model, [(x_score, y_score)], F.cross_entropy, "cpu", "none", sv_samples=2
    )
    rows = metric.run(model[0], True)
    return rows[:, rows.any(0)]


def covered_on_network(rows: np.ndarray, reduction: str, samples: int) -> tuple[float, float]:
    """Return the same shares on random samples of the pictures in ``rows`` (pictures, units)."""
    random, truth, shares = np.random.default_rng(0), estimated(rows, reduction).scores, []
    for _ in range(300):
        estimate = estimated(rows[random.integers(len(rows), size=samples)], reduction)
        both = (replace(estimate, skewness=None), estimate)
        bounds = [variant.interval() for variant in both]
        shares.append([((low <= truth) & (truth <= high)).mean() for low, high in bounds])
    by_student, built = np.mean(shares, 0)
    return float(by_student), float(built)


def wrong(
    name: str, repetitions: int = 2000, first: int = ENOUGH, most: int = 1024, seed: int = 0
) -> tuple[float, float]:
    """Return the shares of wrong and of right decisions of `separated` on the hardest pair.

    One unit scores exactly 0 on each sample. The other has heavy tails and an exact score that is
    only negligibly larger: deciding that it is lower is wrong. Each round doubles the samples.
    """
    rows = DISTRIBUTIONS[name].draw(np.random.default_rng(seed), (most, repetitions))
    ends = {False: 0, True: 0}  # whether the score with heavy tails is above 0
    for number in range(int(np.log2(most / first)) + 1):
        estimate = estimated(rows[: first * 2**number])
        pairs = [_beside_zero(estimate, unit) for unit in range(rows.shape[1])]
        ended = np.array([is_separated(pair, 0.5, number + 1) for pair in pairs])
        for index in ended.nonzero()[0]:
            ends[bool(pairs[index].scores[0] > 0)] += 1
        rows = rows[:, ~ended]
    return ends[False] / repetitions, ends[True] / repetitions


def _beside_zero(estimate: Estimate, unit: int) -> Estimate:
    """Return an estimate of ``unit`` and of a second unit whose score is 0 without error."""
    columns = [
        np.array([values[unit], 0.0])  # type: ignore[index]
        for values in (estimate.scores, estimate.error, estimate.skewness)
    ]
    return Estimate(columns[0], None, columns[1], None, estimate.degrees, columns[2])


def coverage_table() -> list[str]:
    heads = " | ".join(f"{n} samples" for n in SAMPLES)
    lines = [f"| reduction | per-sample scores | {heads} |", "| --- | --- |" + " --- |" * 3]
    rows = contributions()
    for reduction in REDUCTIONS:
        measured = {
            name: [covered(name, reduction, n) for n in SAMPLES] for name in DISTRIBUTIONS
        } | {"a network on digits": [covered_on_network(rows, reduction, n) for n in SAMPLES]}
        for name, shares in measured.items():
            cells = " | ".join(f"{100 * old:.1f} → {100 * new:.1f}" for old, new in shares)
            lines.append(f"| `{reduction}` | {name} | {cells} |")
    return lines


def wrong_table() -> list[str]:
    lines = ["| per-sample scores | wrong |", "| --- | ---: |"]
    return lines + [f"| {name} | {100 * wrong(name)[0]:.1f} % |" for name in DISTRIBUTIONS]


if __name__ == "__main__":
    print("\n".join([*coverage_table(), "", *wrong_table()]))
