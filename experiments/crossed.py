"""Means over networks and pictures, with intervals that hold for other networks and pictures."""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from pruning_lab.compare.statistics import CONFIDENCE
from pruning_lab.errors import UserError


@dataclass(frozen=True)
class Crossed:
    """A mean over networks and pictures, its interval, and the sources of its error.

    ``networks`` and ``pictures`` are the standard errors due to the choice of either, ``error`` is
    the standard error of the mean, with its ``degrees`` of freedom.
    """

    mean: float
    low: float
    high: float
    networks: float
    pictures: float
    error: float
    degrees: float

    @property
    def p(self) -> float:
        """Two-sided p value of a true mean of 0, by Student's t; NaN if the error is 0."""
        return 2 * self._tail(abs(self.mean))

    def p_equivalent(self, margin: float) -> float:
        """Return the p value of a true mean outside ± ``margin``, by two one-sided t tests."""
        return self._tail(margin - abs(self.mean))

    def _tail(self, distance: float) -> float:
        if not self.error:
            return float("nan")
        return float(stats.t.sf(distance / self.error, self.degrees))


def crossed_mean(values: np.ndarray) -> Crossed:
    """Return the mean of ``values`` (networks, pictures), both drawn from larger populations.

    The model is value = mean + network + picture + rest, all random. With n networks, m pictures
    and the mean squares of a two-way table, Var(mean) = (MS_networks + MS_pictures - MS_rest) /
    (n m), at least the larger of the first two; the interval is Student's t with Satterthwaite's
    degrees of freedom. Values may be differences of two criteria in correctness (-1, 0, 1) or loss.
    Raises UserError for fewer than two networks or two pictures.
    """
    n, m = values.shape
    if min(n, m) < 2:
        raise UserError(f"{n} networks and {m} pictures: at least two of each are needed.")
    mean, rows, columns = float(values.mean()), values.mean(1), values.mean(0)
    of_networks, of_pictures = m * rows.var(ddof=1), n * columns.var(ddof=1)
    rest = values - rows[:, None] - columns[None] + mean
    of_rest = (rest**2).sum() / ((n - 1) * (m - 1))
    squares = np.array([of_networks, of_pictures, of_rest])
    freedom = np.array([n - 1, m - 1, (n - 1) * (m - 1)])
    variance = max(of_networks + of_pictures - of_rest, of_networks, of_pictures) / (n * m)
    if variance <= 0:
        return Crossed(mean, mean, mean, 0.0, 0.0, 0.0, min(n, m) - 1)
    effective = max((variance * n * m) ** 2 / (squares**2 / freedom).sum(), min(n, m) - 1)
    error = float(np.sqrt(variance))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, effective)) * error
    errors = np.sqrt(np.maximum([of_networks - of_rest, of_pictures - of_rest], 0) / (n * m))
    sources = float(errors[0]), float(errors[1])
    return Crossed(mean, mean - half, mean + half, *sources, error, float(effective))
