"""Statistics of a comparison of criteria: paired differences and ranks over blocks."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
from scipy import optimize, stats

from pruning_lab.errors import UserError

MANY = 20
"""Number of pairs from which intervals are by the bootstrap (BCa) instead of Student's t."""

ALPHA = 0.05
"""Significance level: differences with a smaller p value are called significant."""

CONFIDENCE = 0.95
"""Confidence level of all intervals."""

POWER = 0.8
"""Probability with which a detectable difference is found."""

RESAMPLES = 9999


def half_width(values: pd.Series) -> float:
    """Return half the 95 % interval of the mean by Student's t, ignoring NaN; NaN for one value."""
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, values.count() - 1) * values.sem())


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences, its interval, and the difference that is detectable.

    ``p`` is the two-sided p value of no difference by Student's t; ``detectable`` is the true
    difference that would be found with a probability of 80 %, if the spread is as observed. If all
    differences are equal, the spread is unknown: interval, p and detectable are NaN.
    """

    mean: float
    low: float
    high: float
    p: float
    pairs: int
    detectable: float


def check_pairs(differences: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return the differences as an array. Raises UserError for fewer than two."""
    values = np.asarray(differences, float)
    if len(values) < 2:
        raise UserError(f"{len(values)} pairs have no spread to estimate; at least two are needed.")
    return values


def paired(differences: Sequence[float], comparisons: int = 1) -> Difference:
    """Return the mean of paired differences, with its 95 % interval.

    The interval is by Student's t for fewer than 20 pairs, else by the bias-corrected, accelerated
    bootstrap (Efron 1987). ``detectable`` is adjusted for that many ``comparisons`` (Bonferroni).
    Raises UserError for fewer than two pairs.
    """
    values = check_pairs(differences)
    spread, mean, pairs = values.std(ddof=1), float(values.mean()), len(values)
    if spread <= 1e-12 * max(1, abs(mean)):
        return Difference(mean, np.nan, np.nan, np.nan, pairs, np.nan)
    test = stats.ttest_1samp(values, 0)
    low, high = test.confidence_interval(CONFIDENCE)
    if pairs >= MANY:
        low, high = stats.bootstrap(
            (values,), np.mean, n_resamples=RESAMPLES, confidence_level=CONFIDENCE, method="BCa",
            rng=np.random.default_rng(0),
        ).confidence_interval  # fmt: skip
    detectable = spread * detectable_effect(pairs, (1 - CONFIDENCE) / comparisons)
    return Difference(mean, float(low), float(high), float(test.pvalue), pairs, float(detectable))


@cache
def detectable_effect(pairs: int, alpha: float = ALPHA) -> float:
    """Return the mean/std that a two-sided paired t test finds with POWER, sign included."""
    limit = stats.t.ppf(1 - alpha / 2, pairs - 1)

    def above(shift: float) -> float:
        return float(stats.nct.sf(limit, pairs - 1, shift) - POWER)

    upper = limit
    while above(upper) < 0:
        upper *= 1.5
    return float(optimize.brentq(above, 0, upper) / np.sqrt(pairs))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Return ``p_values`` adjusted for their number by Holm's step-down procedure (Holm 1979).

    The i-th smallest of m is multiplied by m - i + 1, and is never below the one before it. NaN
    stays NaN, and counts among the m.
    """
    p = np.asarray(p_values, float)
    order = np.argsort(p)
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return np.minimum(stepped, 1)[np.argsort(order)]


@dataclass(frozen=True)
class Ranking:
    """Mean ranks of criteria over blocks, 1 the best, and the tests of their differences.

    ``statistic`` is Friedman's in the form of Iman and Davenport, ``p`` the p value of no
    difference by permutation; ``critical_difference`` is Nemenyi's: mean ranks that are closer do
    not differ significantly. ``alike`` are the longest runs of such criteria, in order of rank.
    """

    ranks: pd.Series
    blocks: int
    statistic: float
    p: float
    critical_difference: float
    alike: list[list[str]]


def ranking(table: pd.DataFrame, alpha: float = ALPHA) -> Ranking:
    """Compute Friedman's test and Nemenyi's critical difference (Demšar, JMLR 7, 2006).

    ``table`` has a row for each block and a column for each criterion; higher is better, ties share
    their ranks. With k criteria and N blocks, F = (N - 1) chi2 / (N (k - 1) - chi2) and CD =
    q sqrt(k (k + 1) / (6 N)). p is the share of 9999 random orders within the blocks whose ranks
    differ at least as much. It is right for few blocks, too, where the p value by the F
    distribution is far too small. Raises UserError for fewer than three criteria or two blocks.
    """
    blocks, k = table.shape
    if k < 3 or blocks < 2 or table.isna().any(axis=None):
        raise UserError(
            f"Ranks need at least three criteria in at least two blocks, without gaps; there are "
            f"{k} in {blocks}, with {int(table.isna().sum().sum())} gaps."
        )
    within = table.rank(axis=1, ascending=False)
    ranks = within.mean().sort_values(kind="stable")
    if (within.nunique(axis=1) == 1).all():  # nothing but ties
        chi2 = 0.0
    else:
        chi2 = stats.friedmanchisquare(*(table[name] for name in table)).statistic
    residual = blocks * (k - 1) - chi2
    statistic = float((blocks - 1) * chi2 / residual) if residual > 1e-9 else np.inf
    q = stats.studentized_range.ppf(1 - alpha, k, np.inf) / np.sqrt(2)
    critical = float(q * np.sqrt(k * (k + 1) / (6 * blocks)))
    p = _p_by_permutation(within.to_numpy())
    return Ranking(ranks, blocks, statistic, p, critical, _alike(ranks, critical))


def _p_by_permutation(ranks: np.ndarray) -> float:
    """Return the p value of rank sums that differ this much, from random orders within blocks."""
    rng = np.random.default_rng(0)
    shuffled = rng.permuted(np.broadcast_to(ranks, (RESAMPLES, *ranks.shape)), axis=2)
    squares = np.square(shuffled.sum(1)).sum(1)
    return float((1 + (squares >= np.square(ranks.sum(0)).sum() - 1e-9).sum()) / (1 + RESAMPLES))


def _alike(ranks: pd.Series, critical: float) -> list[list[str]]:
    """Return the longest runs of criteria, in order of rank, within the critical difference."""
    names, groups = list(ranks.index), []
    last = 0
    for first in range(len(names)):
        end = int((ranks <= ranks.iloc[first] + critical).sum())
        if end > last and end - first > 1:
            groups.append(names[first:end])
            last = end
    return groups
