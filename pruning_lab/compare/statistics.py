"""Statistics of a comparison of criteria: paired differences and ranks over blocks."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

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

ENUMERATED = 16
"""Up to this many pairs all 2^n sign flips are tried, above it RESAMPLES random ones."""


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


def sign_flip_p(differences: Sequence[float]) -> float:
    """Return the two-sided p value of no difference, by sign flips.

    Under the null hypothesis each pair's difference has either sign with equal probability
    (exchangeable criteria). p is the share of all 2^n flips whose mean is at least as far from 0 as
    the observed one. Exact for up to 16 pairs, whatever the distribution; with more, 9999 flips are
    drawn. Never below 2^(1 - n): five pairs cannot reach 0.05. Raises UserError for fewer than two
    pairs, or differences that are not finite.
    """
    values = check_pairs(differences)
    if not np.isfinite(values).all():
        raise UserError(f"Differences must be finite; they are {values.tolist()}.")
    sums = _flips(len(values)) @ values
    as_far = np.abs(sums) >= abs(values.sum()) - 1e-12 * np.abs(values).sum()
    if len(values) <= ENUMERATED:
        return float(as_far.mean())
    return float((1 + as_far.sum()) / (1 + len(sums)))


def band_factor(curves: np.ndarray) -> float:
    """Return the half width, in standard errors, of a 95 % band that holds at all steps at once.

    ``curves`` (n, K) are n independent curves over K steps; the band is around their mean. The
    factor is Student's t quantile times the ratio of the quantiles of max_k |m_k| and of a single
    |m_k|, where m_k is the mean divided by the standard error at step k when the curves' deviations
    from their mean get random signs (the wild bootstrap). Steps without spread do not count.
    """
    n = len(check_pairs(curves))
    student = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1))
    deviations = curves - curves.mean(0)
    deviations = deviations[:, deviations.std(0) > 1e-9 * np.abs(curves).max()]
    if not deviations.shape[1]:
        return student
    means = np.abs(_flips(n) @ (deviations / np.sqrt((deviations**2).sum(0))))
    alone = np.quantile(means, CONFIDENCE, axis=0).mean()
    return student * float(np.quantile(means.max(1), CONFIDENCE) / alone)


def _flips(n: int) -> np.ndarray:
    """Return rows of n signs (flips, n): all 2^n, or random ones."""
    if n <= ENUMERATED:
        return np.array(list(product((1.0, -1.0), repeat=n)))
    return np.random.default_rng(0).choice((1.0, -1.0), (RESAMPLES, n))
