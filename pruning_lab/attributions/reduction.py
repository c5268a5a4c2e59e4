"""From per-sample scores to one score a unit and its error, batch after batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from scipy.stats import t as student

from pruning_lab import ranks
from pruning_lab.errors import UserError

Reduction = str | Callable[[np.ndarray], np.ndarray]

Numbers = TypeVar("Numbers", np.ndarray, torch.Tensor)

tiny = float(np.finfo(float).tiny)
REDUCTIONS = ("mean", "sum", "mean_abs", "mean_plus_2_std")
"""Without those that need every sample: ``"none"`` and callables."""


def check_reduction(reduction: Reduction) -> None:
    """UserError for a name that is not known."""
    if not callable(reduction) and reduction not in (*REDUCTIONS, "none"):
        raise UserError(
            f"reduction={reduction!r} is not known; choose one of {', '.join(REDUCTIONS)}, none, "
            "or pass a callable over the per-sample scores (samples, units)."
        )


@dataclass(frozen=True)
class Estimate:
    """Scores, (units,) or (samples, units) with ``"none"``, and two standard errors, (units,).

    ``sampling_error`` is that of the criterion's own draws (Shapley's orders) for these samples, 0
    where nothing is drawn. ``error`` includes the choice of the samples: how far the scores may be
    from those on all data of this kind. None where an error is not known. The errors are estimates
    themselves: ``sampling_degrees`` (units,) and ``degrees`` are their degrees of freedom.
    """

    scores: np.ndarray
    sampling_error: np.ndarray | None = None
    error: np.ndarray | None = None
    sampling_degrees: np.ndarray | None = None
    degrees: np.ndarray | None = None

    def half_widths(self, of: str = "error", level: float = 0.95) -> np.ndarray:
        """How far the intervals of single units reach to either side, (units,), by Student's t.

        ``of`` is ``"error"`` or ``"sampling_error"``, which must be known.
        """
        both = (self.error, self.degrees)
        error, degrees = (self.sampling_error, self.sampling_degrees) if of != "error" else both
        if error is None or degrees is None:
            raise ValueError(f"nothing is known of the scores' {of}")
        return error * student.ppf((1 + level) / 2, np.maximum(degrees, 1))

    @property
    def relative_error(self) -> float:
        """The sampling error as a share of the scores, l2 norms over the units.

        Infinite where the scores are no larger than their error; nan if that is unknown.
        """
        if self.sampling_error is None:
            return float("nan")
        noise = np.square(self.sampling_error).sum()
        truth = np.square(self.scores).sum() - noise
        if noise == 0:
            return 0.0
        return float(np.sqrt(noise / truth)) if truth > 0 else float("inf")


@dataclass(frozen=True)
class Moments:
    """What is known of a layer's per-sample scores x = truth + noise of the draws, (units,) each.

    ``mean``, and ``spread``: the variance of the truth over the samples (an estimate, which may be
    below 0). Their variances and twice their covariance, by the draws alone and by the choice of
    samples as well: (of the mean, both, of the spread). ``effective`` many samples tell of the
    draws.
    """

    mean: torch.Tensor
    spread: torch.Tensor
    by_draws: torch.Tensor
    in_all: torch.Tensor
    effective: torch.Tensor


class Sums:
    """Sums over the samples of powers of their scores x and of the variances v of their draws.

    In float64 about the first batch's mean, so that little cancels; no sample is kept.
    """

    def __init__(self) -> None:
        self.count = 0
        self._pilot = torch.zeros((), dtype=torch.float64)
        self._sums = [torch.zeros((), dtype=torch.float64)] * 8

    def add(self, rows: torch.Tensor, variances: torch.Tensor) -> None:
        rows, v = rows.double(), variances.double()
        if not self.count:
            self._pilot = rows.mean(0)
        d = rows - self._pilot
        dd = d * d
        more = (d, dd, dd * d, dd * dd, v, v * v, d * v, dd * v)
        self._sums = [old + new.sum(0) for old, new in zip(self._sums, more, strict=True)]
        self.count += len(rows)

    def moments(self) -> Moments:
        n = self.count
        d, second, third, fourth, v, vv, dv, ddv = (each / n for each in self._sums)
        m2 = (second - d**2).clamp(min=0)  # central moments, the population's
        m3 = third - 3 * d * second + 2 * d**3
        m4 = fourth - 4 * d * third + 6 * d**2 * second - 3 * d**4
        xv, xxv = dv - d * v, ddv - 2 * d * dv + d**2 * v
        return Moments(
            self._pilot + d,
            m2 - v * (1 - 1 / n),
            torch.stack([v, 4 * xv, 4 * xxv]) / n,
            torch.stack([m2, 2 * m3, m4 - m2**2]) / max(n - 1, 1),
            n * v**2 / vv.clamp(min=tiny),
        )


class Reducer:
    """Takes the per-sample scores of one layer and gives them back reduced, with their errors.

    ``draws`` a sample were made for each score. Memory does not depend on the number of samples,
    but for ``"none"``, callables, and ``"mean_abs"`` of scores that are drawn: rounds of draws are
    pooled before their sign goes.
    """

    def __init__(self, reduction: Reduction, draws: int = 1) -> None:
        self.reduction, self.draws = reduction, draws
        self.sums = Sums()
        self.rows: list[torch.Tensor] = []
        self.variances: list[torch.Tensor] = []  # of the draws of these rows

    def add(
        self,
        scores: torch.Tensor,
        variances: torch.Tensor | None = None,
        samples: int | None = None,
    ) -> None:
        """The scores of more samples, (samples, units), and the variances of their draws.

        Of so many ``samples`` the other ranks have the others.
        """
        if samples is not None:
            scores = ranks.gathered(scores, samples)
            variances = None if variances is None else ranks.gathered(variances, samples)
        if self.reduction == "mean_abs" and variances is not None:
            self.rows.append(scores.double())
            self.variances.append(variances.double())
        elif self.reduction in REDUCTIONS:
            scores = scores.abs() if self.reduction == "mean_abs" else scores
            self.sums.add(scores, torch.zeros_like(scores) if variances is None else variances)
        else:
            self.rows.append(scores.double().cpu())

    def estimate(self) -> Estimate:
        """The scores so far, as ``estimate`` gives them of one round."""
        return estimate([self])


def estimate(rounds: Sequence[Reducer], known: bool = True) -> Estimate:
    """The scores of a layer out of one or more rounds of draws on the same samples.

    ``known`` says whether the variances of the draws were. Rounds weigh by their draws; the degrees
    of freedom are Satterthwaite's (1946).
    """
    if rounds[0].variances:
        rounds = [_absolute(rounds)]
    reduction, count = rounds[0].reduction, rounds[0].sums.count
    shares = [each.draws / sum(each.draws for each in rounds) for each in rounds]
    if callable(reduction) or reduction == "none":
        parts = [s * torch.cat(each.rows) for s, each in zip(shares, rounds, strict=True)]
        rows = finite(torch.stack(parts).sum(0).numpy())
        return Estimate(_checked(rows, reduction(rows)) if callable(reduction) else rows)
    factor = 2.0 if reduction == "mean_plus_2_std" else 0.0
    scale = count if reduction == "sum" else 1
    found = [each.sums.moments() for each in rounds]
    share = torch.tensor(shares, dtype=torch.float64, device=found[0].mean.device)[:, None]

    def pooled(values: Sequence[torch.Tensor]) -> torch.Tensor:
        return (share.view(-1, *[1] * values[0].ndim) * torch.stack(list(values))).sum(0)

    mean, spread = pooled([each.mean for each in found]), pooled([each.spread for each in found])
    # the slope of factor * sqrt(spread), where the spread is not known to be 0
    unsure = pooled([each.in_all for each in found])[2].clamp(min=0).sqrt()
    slope = factor / (2 * torch.maximum(spread, unsure).clamp(min=tiny).sqrt())
    slopes = torch.stack([torch.ones_like(slope), slope, slope**2])
    own = torch.stack([(slopes * each.by_draws).sum(0).clamp(min=0) for each in found])
    in_all = torch.stack([(slopes * each.in_all).sum(0) for each in found])
    by_data = pooled(list((in_all - own).clamp(min=0)))
    by_draws = share**2 * own
    effective = torch.stack([each.effective for each in found]).clamp(min=tiny)
    per_sample = [[max(each.draws - 1, 1)] for each in rounds]
    freedom = effective * torch.tensor(per_sample).to(share)
    variance = by_draws.sum(0)
    degrees = variance**2 / (by_draws**2 / freedom).sum(0).clamp(min=tiny)

    def numbers(values: torch.Tensor) -> np.ndarray:
        return values.cpu().numpy()

    return Estimate(
        finite(numbers(scale * (mean + factor * spread.clamp(min=0).sqrt()))),
        numbers(scale * variance.sqrt()) if known else None,
        numbers(scale * (variance + by_data).sqrt()) if count > 1 else None,
        numbers(degrees) if known else None,
        np.array(count - 1.0) if count > 1 else None,
    )


def _absolute(rounds: Sequence[Reducer]) -> Reducer:
    """One round of absolute values: those of each sample's score over all draws.

    The variance of an absolute value is at most that of the score.
    """
    draws = sum(each.draws for each in rounds)
    scores, variances = torch.zeros(()), torch.zeros(())
    for each in rounds:
        share = each.draws / draws
        scores = scores + share * torch.cat(each.rows)
        variances = variances + share**2 * torch.cat(each.variances)
    whole = Reducer("mean_abs", draws)
    whole.sums.add(scores.abs(), variances)
    return whole


def finite(scores: Numbers) -> Numbers:
    """The scores, or what they are made of; UserError where some are not finite."""
    values = torch.as_tensor(scores)
    if bad := int((~values.isfinite()).sum()):
        raise UserError(
            f"{bad} of {values.numel()} scores are not finite: for some sample the loss, or an "
            "activation, is inf or nan. Look at model(x) and the criterion's losses."
        )
    return scores


def _checked(rows: np.ndarray, reduced: np.ndarray) -> np.ndarray:
    found = np.asarray(reduced)
    if found.shape[-1:] != rows.shape[-1:]:
        raise UserError(
            f"reduction made shape {found.shape} out of the per-sample scores {rows.shape} "
            "(samples, units); it must leave one score a unit."
        )
    return found
