"""Reduce per-sample scores to one score per unit and its error, batch after batch."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import t as student

from pruning_lab.errors import UserError
from pruning_lab.runtime import distributed

Reduction = str | Callable[[np.ndarray], np.ndarray]

tiny = float(np.finfo(float).tiny)
REDUCTIONS = ("mean", "sum", "mean_abs", "mean_plus_2_std")
"""Named reductions without ``"none"``, which needs every sample, as callables do."""


def check_reduction(reduction: Reduction) -> None:
    """Raise UserError for an unknown name."""
    if not callable(reduction) and reduction not in (*REDUCTIONS, "none"):
        raise UserError(
            f"reduction={reduction!r} is not known; choose one of {', '.join(REDUCTIONS)}, none, "
            "or pass a callable over the per-sample scores (samples, units)."
        )


@dataclass(frozen=True)
class Estimate:
    """Scores, (units,) or (samples, units) with ``"none"``, and two standard errors, (units,).

    ``sampling_error`` is the error of the criterion's own draws (Shapley's permutations) for these
    samples, 0 where nothing is drawn. ``error`` is the total error, which includes the choice of
    the samples: how far the scores may be from those on all data of this kind. None where an error
    is unknown. ``sampling_degrees`` (units,) and ``degrees`` are the errors' degrees of freedom;
    ``skewness`` (units,) is that of the samples' contributions to a score, None where unknown.
    """

    scores: np.ndarray
    sampling_error: np.ndarray | None = None
    error: np.ndarray | None = None
    sampling_degrees: np.ndarray | None = None
    degrees: np.ndarray | None = None
    skewness: np.ndarray | None = None

    def interval(self, of: str = "error", level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Return lower and upper bounds of the intervals of single units, (units,) each.

        ``of="sampling_error"``: Student's t. ``of="error"``: each bound is the wider one of
        Student's t and of Hall's correction for skewness (1992, "On the removal of skewness by
        transformation"), here with Student's quantile; docs/method.md has their coverage in
        simulations. Raises ValueError if the error is unknown.
        """
        both = (self.error, self.degrees)
        error, degrees = (self.sampling_error, self.sampling_degrees) if of != "error" else both
        if error is None or degrees is None:
            raise ValueError(f"there is no interval: the scores' {of} is unknown")
        below = above = student.ppf((1 + level) / 2, np.maximum(degrees, 1))
        if of == "error" and self.skewness is not None:
            root = self.skewness / np.sqrt(degrees + 1)
            below, above = _widened(below, root), _widened(above, -root)
        return self.scores - error * below, self.scores + error * above

    @property
    def relative_error(self) -> float:
        """The total error as a share of the scores, l2 norms over the units.

        Infinite if the scores are no larger than their error, also if all are 0; nan if the error
        is unknown.
        """
        if self.error is None:
            return float("nan")
        noise = np.square(self.error).sum()
        signal = np.square(self.scores).sum() - noise
        return float(np.sqrt(noise / signal)) if signal > 0 else float("inf")


def _widened(quantile: np.ndarray, root: np.ndarray) -> np.ndarray:
    """Return the standard errors from a mean to its lower bound: Hall's, at least ``quantile``.

    ``root`` is the skewness divided by the square root of the number of samples.
    """
    root = np.where(np.abs(root) < 1e-6, 1e-6, root)
    return np.maximum(quantile, 3 / root * (np.cbrt(1 + root * (quantile - root / 6)) - 1))


class Sums:
    """Sums over the samples of powers of their scores x and of the variances v of their draws.

    In float64 and relative to the first batch's mean, against cancellation; no sample is stored.
    """

    def __init__(self) -> None:
        self.count = 0
        self._pilot = torch.zeros((), dtype=torch.float64)
        self._sums = [torch.zeros((), dtype=torch.float64)] * 10

    def add(self, rows: torch.Tensor, variances: torch.Tensor) -> None:
        """Add the scores of more samples and the variances of their draws, (samples, units)."""
        rows, v = rows.double(), variances.double()
        if not self.count:
            self._pilot = rows.mean(0)
        d = rows - self._pilot
        dd = d * d
        terms = (d, dd, dd * d, dd * dd, dd * dd * d, dd * dd * dd, v, v * v, d * v, dd * v)
        self._sums = [old + new.sum(0) for old, new in zip(self._sums, terms, strict=True)]
        self.count += len(rows)

    def moments(self) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
        """Return three sorts of moments of the samples' scores x, (units,) each.

        The mean of x; the 2nd to 6th central moment of x (the population's); and with d = x - mean
        the means of v, v^2, d v and d^2 v.
        """
        n = self.count
        d, second, third, fourth, fifth, sixth, v, vv, dv, ddv = (total / n for total in self._sums)
        m2 = (second - d**2).clamp(min=0)
        m3 = third - 3 * d * second + 2 * d**3
        m4 = fourth - 4 * d * third + 6 * d**2 * second - 3 * d**4
        m5 = fifth - 5 * d * fourth + 10 * d**2 * third - 10 * d**3 * second + 4 * d**5
        m6 = sixth - 6 * d * fifth + 15 * d**2 * fourth - 20 * d**3 * third
        m6 = m6 + 15 * d**4 * second - 5 * d**6
        of_variances = [v, vv, dv - d * v, ddv - 2 * d * dv + d**2 * v]
        return self._pilot + d, [m2, m3, m4, m5, m6], of_variances


class Reducer:
    """Collects the per-sample scores of one layer and reduces them, with their errors.

    Each score is a mean of ``draws`` draws per sample; ``known``: their variances are known. Memory
    does not depend on the number of samples, except for ``"none"``, callables, and ``"mean_abs"``
    of sampled scores.
    """

    def __init__(self, reduction: Reduction, draws: int = 1, known: bool = True) -> None:
        self.reduction, self.draws, self.known = reduction, draws, known
        self.sums = Sums()
        self.rows: list[torch.Tensor] = []
        self.variances: list[torch.Tensor] = []  # of the draws, for these rows

    def add(
        self,
        scores: torch.Tensor,
        variances: torch.Tensor | None = None,
        samples: int | None = None,
    ) -> None:
        """Add the scores of more samples, (samples, units), and the variances of their draws.

        ``samples``: their number on all ranks; the rows of the other ranks are then gathered, too.
        """
        if samples is not None:
            scores = distributed.gathered(scores, samples)
            variances = None if variances is None else distributed.gathered(variances, samples)
        if self.reduction == "mean_abs" and variances is not None:
            self.rows.append(scores.double())
            self.variances.append(variances.double())
        elif self.reduction in REDUCTIONS:
            scores = scores.abs() if self.reduction == "mean_abs" else scores
            self.sums.add(scores, torch.zeros_like(scores) if variances is None else variances)
        else:
            self.rows.append(scores.double().cpu())

    def estimate(self) -> Estimate:
        """Return the scores so far and errors, with Satterthwaite's (1946) degrees of freedom."""
        if self.reduction in REDUCTIONS:
            return self._reduced()
        rows = finite(torch.cat(self.rows)).numpy()
        if not callable(self.reduction):
            return Estimate(rows)
        scores = np.asarray(self.reduction(rows))
        if scores.shape[-1:] != rows.shape[-1:]:
            raise UserError(
                f"reduction made shape {scores.shape} out of the per-sample scores {rows.shape} "
                "(samples, units); it must leave one score per unit."
            )
        return Estimate(scores)

    def _reduced(self) -> Estimate:
        sums = self.sums
        if self.variances:  # the variance of an absolute value is at most that of the score
            sums = Sums()
            sums.add(torch.cat(self.rows).abs(), torch.cat(self.variances))
        n, (mean, central, (v, vv, xv, xxv)) = sums.count, sums.moments()
        m2, m3, m4, *_ = central
        factor = 2.0 if self.reduction == "mean_plus_2_std" else 0.0
        scale = n if self.reduction == "sum" else 1
        # variance of the true scores, without the draws' noise; as an estimate it may be below 0
        spread = m2 - v * (1 - 1 / n)
        # variance of the mean, twice its covariance with the spread, and variance of the spread
        by_draws = torch.stack([v, 4 * xv, 4 * xxv]) / n
        in_all = torch.stack([m2, 2 * m3, m4 - m2**2]) / max(n - 1, 1)
        # slope of factor * sqrt(spread), at the spread or, if larger, its standard error
        unsure = in_all[2].clamp(min=0).sqrt()
        slope = factor / (2 * torch.maximum(spread, unsure).clamp(min=tiny).sqrt())
        slopes = torch.stack([torch.ones_like(slope), slope, slope**2])
        drawn = (slopes * by_draws).sum(0).clamp(min=0)
        chosen = ((slopes * in_all).sum(0) - drawn).clamp(min=0)  # by the choice of the samples
        freedom = (n * v**2 / vv.clamp(min=tiny)).clamp(min=tiny) * max(self.draws - 1, 1)
        degrees = drawn**2 / (drawn**2 / freedom).clamp(min=tiny)

        def numbers(values: torch.Tensor, known: bool) -> np.ndarray | None:
            return values.cpu().numpy() if known else None

        scores = scale * (mean + factor * spread.clamp(min=0).sqrt())
        return Estimate(
            finite(scores).cpu().numpy(),
            numbers(scale * drawn.sqrt(), self.known),
            numbers(scale * (drawn + chosen).sqrt(), n > 1),
            numbers(degrees, self.known),
            np.array(n - 1.0) if n > 1 else None,
            numbers(_skewness(central, slope), n > 1),
        )


@dataclass(frozen=True)
class Drawn:
    """Per-sample scores, means of ``draws`` draws each, and their sums of squared deviations.

    ``scores`` and ``squares`` are (samples, units) in float64.
    """

    scores: torch.Tensor
    squares: torch.Tensor
    draws: int

    @classmethod
    def of(cls, batches: Iterable[tuple[torch.Tensor, torch.Tensor, int]], draws: int) -> "Drawn":
        """Collect a round from batches: scores, their variances, number of samples on all ranks."""
        scores, variances = [], []
        for values, variance, samples in batches:
            scores.append(distributed.gathered(values, samples).double().cpu())
            variances.append(distributed.gathered(variance, samples).double().cpu())
        return cls(torch.cat(scores), torch.cat(variances) * draws * (draws - 1), draws)

    def with_samples(self, other: "Drawn") -> "Drawn":
        """Combine with more samples, which have as many draws."""
        scores = torch.cat([self.scores, other.scores])
        return Drawn(scores, torch.cat([self.squares, other.squares]), self.draws)

    def with_draws(self, other: "Drawn") -> "Drawn":
        """Combine with more draws for the same samples (Chan et al., 1983)."""
        draws = self.draws + other.draws
        apart = other.scores - self.scores
        between = apart**2 * (self.draws * other.draws / draws)
        scores = self.scores + apart * (other.draws / draws)
        return Drawn(scores, self.squares + other.squares + between, draws)

    def estimate(self, reduction: Reduction) -> Estimate:
        """Return the reduced scores; with one draw per sample the sampling error is unknown."""
        reducer = Reducer(reduction, self.draws, known=self.draws > 1)
        reducer.add(self.scores, self.squares / max(1, self.draws * (self.draws - 1)))
        return reducer.estimate()


def _skewness(central: Sequence[torch.Tensor], slope: torch.Tensor) -> torch.Tensor:
    """Return the skewness of d + slope (d^2 - m2), a sample's contribution, by moments of d."""
    m2, m3, m4, m5, m6 = central
    second = m2 + 2 * slope * m3 + slope**2 * (m4 - m2**2)
    third = m3 + 3 * slope * (m4 - m2**2) + 3 * slope**2 * (m5 - 2 * m2 * m3)
    third = third + slope**3 * (m6 - 3 * m2 * m4 + 2 * m2**3)
    return (third / second.clamp(min=0) ** 1.5).nan_to_num(0, 0, 0)


def finite(scores: torch.Tensor) -> torch.Tensor:
    """Return scores, or values that make them, unchanged; UserError if some are not finite."""
    if bad := int((~scores.isfinite()).sum()):
        raise UserError(
            f"{bad} of {scores.numel()} scores are not finite: for some sample the loss, or an "
            "activation, is inf or nan. Look at model(x) and the loss function's values."
        )
    return scores
