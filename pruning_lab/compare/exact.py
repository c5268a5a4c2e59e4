"""Exact p values by sign flips, and bands that hold at all steps at once."""

from collections.abc import Sequence
from itertools import product

import numpy as np
from scipy import stats

from pruning_lab.compare.statistics import CONFIDENCE, RESAMPLES, check_pairs
from pruning_lab.errors import UserError

ENUMERATED = 16
"""Up to this many pairs all 2^n flips are tried, above it RESAMPLES random ones."""


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
