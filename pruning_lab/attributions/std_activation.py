"""How much a unit's activations vary."""

from typing import ClassVar

import numpy as np
import torch

from pruning_lab import ranks
from pruning_lab.attributions.activations import ActivationMetric
from pruning_lab.attributions.reduction import Estimate, Reducer, finite


class StdActivationAttributionMetric(ActivationMetric):
    """Standard deviation (the population's) of abs(a) over all samples and positions (Molchanov et
    al., arXiv 1611.06440).

    The paper takes that of a behind a ReLU, where it is the same. It is over samples and positions
    at once, so that units without a map have one, too, and no mean over samples: the scores are
    (units,) whatever the reduction.
    """

    evidence: ClassVar[str] = "activations"
    needs_gradient: ClassVar[bool] = False

    more: ClassVar[tuple[int, ...]] = (2,)

    def formula(self, activation: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """(N, units, 2): a sample's means of abs(a) and a^2."""
        sizes = activation.double().abs()
        return torch.stack([sizes.mean(2), (sizes**2).mean(2)], 2)

    def _reducer(self) -> Reducer:
        return _Spread()


class _Spread(Reducer):
    """sqrt(mean of q - (mean of p)^2) of rows (p, q), with its error to first order."""

    def __init__(self) -> None:
        super().__init__("mean")
        self._count, self._totals = 0, torch.zeros(())

    def add(
        self,
        scores: torch.Tensor,
        variances: torch.Tensor | None = None,
        samples: int | None = None,
    ) -> None:
        rows = scores if samples is None else ranks.gathered(scores, samples)
        p, q = rows.double().unbind(2)
        self._totals = self._totals + torch.stack([p, q, p * p, p * q, q * q]).sum(1)
        self._count += len(rows)

    def estimate(self) -> Estimate:
        n = self._count
        p, q, pp, pq, qq = finite(self._totals / n).cpu().numpy()
        spread = np.sqrt(np.clip(q - p**2, 0, None))
        # the spread's slopes are 1 / (2 spread) in q and -p / spread in p
        variance = (qq - q**2) - 4 * p * (pq - p * q) + 4 * p**2 * (pp - p**2)
        slope = np.divide(0.5, spread, out=np.zeros_like(spread), where=spread > 0)
        error = slope * np.sqrt(np.clip(variance, 0, None) / max(n - 1, 1))
        none, degrees = np.zeros_like(spread), np.full_like(spread, n - 1.0)
        return Estimate(spread, none, error if n > 1 else None, degrees, degrees if n > 1 else None)
