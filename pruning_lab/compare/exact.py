"""Exact p values by sign flips, equivalence, and bands that hold for all steps at once."""

from collections.abc import Sequence
from itertools import product

import numpy as np
from scipy import stats

from pruning_lab.errors import UserError

ENUMERATED = 14
"""Up to so many pairs all 2^n flips are tried, with more RESAMPLES random ones."""

RESAMPLES = 9999


def sign_flip_p(differences: Sequence[float]) -> float:
    """Return the two-sided p value of no difference: the share of sign flips as far from 0.

    Under the null hypothesis that each pair's difference is as likely to have either sign
    (exchangeable criteria), the mean of the flipped differences is as far from 0 as the observed
    one in a share p of all 2^n flips. Exact, whatever the distribution; never below 2^(1 - n), so
    that five pairs cannot reach 0.05.
    """
    values = np.asarray(differences, float)
    _check_pairs(len(values))
    sums = _flips(len(values)) @ values
    as_far = np.abs(sums) >= abs(values.sum()) * (1 - 1e-12)
    if len(values) <= ENUMERATED:
        return float(as_far.mean())
    return float((1 + as_far.sum()) / (1 + len(sums)))


def equivalence_p(differences: Sequence[float], margin: float) -> float:
    """Return the p value that the mean difference lies outside of ± ``margin``.

    The larger of two one-sided t tests (TOST; Schuirmann, 1987). Below 0.05 the criteria are
    equivalent within the margin, which must be chosen before looking at the data. Pairs that all
    differ by the same have p 0 within the margin and 1 outside.
    """
    values = np.asarray(differences, float)
    _check_pairs(len(values))
    if not margin > 0:
        raise UserError(f"margin={margin} must be above 0: the largest difference that is none.")
    mean, error = values.mean(), stats.sem(values)
    if error <= 1e-12 * max(1, abs(mean)):
        return float(abs(mean) >= margin)
    return float(stats.t.sf((margin - abs(mean)) / error, len(values) - 1))


def band_factor(curves: np.ndarray, confidence: float = 0.95) -> float:
    """Return by how many standard errors a band around mean curves holds at all steps at once.

    ``curves`` (n, K) are n independent curves over K steps. The quantile of max_k |t_k| over
    random signs of the curves' deviations from their mean (the wild bootstrap, studentised). For
    one step it is about Student's t quantile. Steps without spread do not count.
    """
    n = len(curves)
    _check_pairs(n)
    deviations = curves - curves.mean(0)
    deviations = deviations[:, deviations.std(0) > 1e-12]
    if not deviations.shape[1]:
        return float(stats.t.ppf((1 + confidence) / 2, n - 1))
    signs = _flips(n)
    means = signs @ deviations / n
    squares = (deviations**2).sum(0)  # signs do not change them
    errors = np.sqrt((squares - n * means**2) / (n - 1) / n)
    with np.errstate(divide="ignore"):  # a flip may leave no spread at all
        largest = np.abs(means / errors).max(1)
    return float(np.quantile(largest, confidence, method="higher"))


def _flips(n: int) -> np.ndarray:
    """Return rows of signs: all of them, or random ones."""
    if n <= ENUMERATED:
        return np.array(list(product((1.0, -1.0), repeat=n)))
    return np.random.default_rng(0).choice((1.0, -1.0), (RESAMPLES, n))


def _check_pairs(count: int) -> None:
    if count < 2:
        raise UserError(f"{count} pairs tell nothing of their spread; two are the least.")
