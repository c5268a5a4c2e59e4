"""What a comparison of criteria can say: paired differences, ranks over blocks, and how sure."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
from scipy import optimize, stats

from pruning_lab.errors import UserError

MANY = 20
"""From so many pairs on intervals come from the bootstrap (BCa), with fewer from Student's t."""

ALPHA = 0.05
"""From what p value on a difference is called one."""

RESAMPLES = 9999
POWER = 0.8


def half_width(values: pd.Series, confidence: float = 0.95) -> float:
    """Half the interval of the mean by Student's t; NaN for a single value. Gaps do not count."""
    return float(stats.t.ppf((1 + confidence) / 2, values.count() - 1) * values.sem())


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences, its interval, and what could have been seen at all.

    ``p`` is that of Student's t for no difference, two-sided; ``detectable`` the true difference
    that is found with a probability of 80 %, were the spread what it is here. Where all pairs
    differ by the same, nothing is known of the spread: interval, p and detectable are NaN.
    """

    mean: float
    low: float
    high: float
    p: float
    pairs: int
    detectable: float


def paired(
    differences: Sequence[float], confidence: float = 0.95, comparisons: int = 1
) -> Difference:
    """The mean difference of pairs, with its interval.

    By Student's t for fewer than 20 pairs, above by the bias-corrected, accelerated bootstrap
    (Efron 1987). What is detectable is so among that many ``comparisons``, adjusted for. Raises
    UserError for fewer than two pairs, which tell nothing of the spread.
    """
    values = np.asarray(differences, float)
    if len(values) < 2:
        raise UserError(f"{len(values)} pairs tell nothing of their spread; two are the least.")
    spread, mean = values.std(ddof=1), float(values.mean())
    if spread <= 1e-12 * max(1, abs(mean)):
        return Difference(mean, np.nan, np.nan, np.nan, len(values), np.nan)
    test = stats.ttest_1samp(values, 0)
    low, high = test.confidence_interval(confidence)
    if len(values) >= MANY:
        low, high = stats.bootstrap(
            (values,), np.mean, n_resamples=RESAMPLES, confidence_level=confidence, method="BCa",
            rng=np.random.default_rng(0),
        ).confidence_interval  # fmt: skip
    detectable = spread * detectable_effect(len(values), (1 - confidence) / comparisons)
    return Difference(
        mean, float(low), float(high), float(test.pvalue), len(values), float(detectable)
    )


@cache
def detectable_effect(pairs: int, alpha: float = ALPHA, power: float = POWER) -> float:
    """The mean over standard deviation that a two-sided paired t test finds, with its sign."""
    limit = stats.t.ppf(1 - alpha / 2, pairs - 1)

    def above(shift: float) -> float:
        return float(stats.nct.sf(limit, pairs - 1, shift) - power)

    most = limit
    while above(most) < 0:
        most *= 1.5
    return float(optimize.brentq(above, 0, most) / np.sqrt(pairs))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """The p values adjusted for their number by Holm's step-down procedure (Holm 1979).

    The i-th smallest of m is multiplied by m - i + 1, and is never below the one before it. NaN
    stays, and counts among the m.
    """
    p = np.asarray(p_values, float)
    order = np.argsort(p)
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted


@dataclass(frozen=True)
class Ranking:
    """Mean ranks of criteria over blocks, 1 the best, and what of them is more than chance.

    ``statistic`` is Friedman's in the form of Iman and Davenport, ``p`` that of no difference;
    ``critical_difference`` is Nemenyi's: mean ranks that are closer cannot be told apart. ``alike``
    are the longest runs of such criteria.
    """

    ranks: pd.Series
    blocks: int
    statistic: float
    p: float
    critical_difference: float
    alike: list[list[str]]


def ranking(table: pd.DataFrame, alpha: float = ALPHA) -> Ranking:
    """Friedman's test and Nemenyi's critical difference (Demšar, JMLR 7, 2006).

    ``table`` has a row for each block and a column for each criterion; higher is better, ties share
    their ranks. With k criteria and N blocks, F = (N - 1) chi2 / (N (k - 1) - chi2) and CD =
    q sqrt(k (k + 1) / (6 N)). p is the share of 9999 random orders within the blocks whose ranks
    differ as much: right for few blocks, too, where that of the F distribution is far too small.
    Raises UserError for fewer than three criteria or two blocks.
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
    left = blocks * (k - 1) - chi2
    statistic = (blocks - 1) * chi2 / left if left > 1e-9 else np.inf
    q = stats.studentized_range.ppf(1 - alpha, k, np.inf) / np.sqrt(2)
    critical = float(q * np.sqrt(k * (k + 1) / (6 * blocks)))
    return Ranking(
        ranks,
        blocks,
        float(statistic),
        _chance(within.to_numpy()),
        critical,
        _alike(ranks, critical),
    )


def _chance(ranks: np.ndarray) -> float:
    """How often sums of ranks differ as much as these if every block's order is a random one."""
    rng = np.random.default_rng(0)
    shuffled = rng.permuted(np.broadcast_to(ranks, (RESAMPLES, *ranks.shape)), axis=2)
    found = np.square(shuffled.sum(1)).sum(1)
    return float((1 + (found >= np.square(ranks.sum(0)).sum() - 1e-9).sum()) / (1 + RESAMPLES))


def _alike(ranks: pd.Series, critical: float) -> list[list[str]]:
    """The longest runs of criteria, in order of rank, that lie within the critical difference."""
    names, found = list(ranks.index), []
    last = 0
    for first in range(len(names)):
        end = int((ranks <= ranks.iloc[first] + critical).sum())
        if end > last and end - first > 1:
            found.append(names[first:end])
            last = end
    return found
