"""Statistics of a comparison of criteria: paired differences and ranks over blocks."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product

import numpy as np
import pandas as pd
from scipy import optimize, stats

from pruning_lab.compare.style import in_order, style_of
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

COLUMNS = ["better", "worse", "difference", "low", "high", "p", "p_exact", "p_holm", "pairs",
           "detectable"]  # fmt: skip
"""Columns of ``differences``."""

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


def by_block(measured: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Return a row per block and a column per criterion, means over a criterion's runs in a block.

    Runs of a block start from the same trained network. NaN if a criterion has no run.
    """
    means = measured.groupby(["block", "metric"])[measure].mean().unstack("metric")
    return means[in_order(measured["metric"])]


def complete(table: pd.DataFrame, block: str = "block") -> tuple[pd.DataFrame, list[str]]:
    """Return the blocks of ``by_block`` that all criteria have, and sentences on those left out.

    Criteria with fewer than two blocks are left out first, as they would leave too few blocks.
    """
    counts = table.notna().sum()
    few = [str(name) for name in table.columns if counts[name] < 2]
    if len(few) == table.shape[1]:
        return table.dropna(), []
    words = [
        f"{style_of(name).label} is left out: it has {counted(counts[name], block)}."
        for name in few
    ]
    table = table.drop(columns=few).dropna(how="all")
    gaps = table[table.isna().any(axis=1)]
    for name, row in gaps.iterrows():
        lacking = ", ".join(style_of(str(metric)).label for metric in row.index[row.isna()])
        words.append(f"The {block} {name} is left out: it lacks {lacking}.")
    return table.drop(index=gaps.index), words


def counted(count: int, one: str, many: str = "") -> str:
    """Return ``1 block`` or ``2 blocks``; ``many`` is the plural if it is irregular."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def differences(table: pd.DataFrame, higher_is_better: bool = True) -> pd.DataFrame:
    """Compare every pair of criteria over the blocks of a complete ``by_block``: one row per pair.

    ``COLUMNS`` are the two criteria, the mean advantage of the better one (never negative) with its
    95 % interval, its p value by Student's t, the exact one by sign flips, the first adjusted for
    all pairs by Holm, the number of blocks, and the difference that would be found with a
    probability of 80 % among all pairs. Raises UserError for fewer than two blocks.
    """
    if len(table) < 2:
        raise UserError(
            f"All criteria share {counted(len(table), 'block')}; a comparison needs at "
            "least two. Run more seeds: seed=0,1,2."
        )
    rows, pairs = [], list(combinations(table.columns, 2))
    for pair in pairs:
        better, worse = sorted(pair, key=lambda name: table[name].mean(), reverse=higher_is_better)
        advantage = (table[better] - table[worse]) * (1 if higher_is_better else -1)
        result = paired(advantage, comparisons=len(pairs))
        about = {"better": better, "worse": worse, "difference": result.mean}
        rows.append(about | vars(result) | {"p_exact": sign_flip_p(advantage)})
    frame = pd.DataFrame(rows, columns=COLUMNS)
    return frame.assign(p_holm=holm(frame["p"].to_list()))
