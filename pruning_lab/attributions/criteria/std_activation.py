"""Standard deviation of a unit's activations."""

import numpy as np
import torch

from pruning_lab.attributions.estimation.reduction import Estimate, Reducer, finite
from pruning_lab.attributions.evidence.activations import ActivationMetric
from pruning_lab.runtime import distributed


class StdActivationAttributionMetric(ActivationMetric):
    """Standard deviation (the population's) of abs(a) over all samples and positions (Molchanov et
    al., arXiv 1611.06440).

    The paper takes that of a after a ReLU, where it is the same. Samples and positions are pooled,
    so that units without a map have a score, too. It is not a mean over samples: the scores are
    (units,) whatever the reduction.
    """

    evidence = "activations"
    needs_gradient = False

    more = (2,)

    def formula(self, activation: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Means of abs(a) and a^2 over the positions of each sample, (N, units, 2)."""
        sizes = activation.double().abs()
        return torch.stack([sizes.mean(2), (sizes**2).mean(2)], 2)

    def _reducer(self) -> Reducer:
        return _Spread()


class _Spread(Reducer):
    """sqrt(mean of q - (mean of p)^2) over rows (p, q), with its first-order error."""

    def __init__(self) -> None:
        super().__init__("mean")
        self._count, self._totals = 0, torch.zeros(())

    def add(
        self,
        scores: torch.Tensor,
        variances: torch.Tensor | None = None,
        samples: int | None = None,
    ) -> None:
        rows = scores if samples is None else distributed.gathered(scores, samples)
        p, q = rows.double().unbind(2)
        self._totals = self._totals + torch.stack([p, q, p * p, p * q, q * q]).sum(1)
        self._count += len(rows)

    def estimate(self) -> Estimate:
        n = self._count
        p, q, pp, pq, qq = finite(self._totals / n).cpu().numpy()
        spread = np.sqrt(np.clip(q - p**2, 0, None))
        # derivatives of the spread: 1 / (2 spread) in q and -p / spread in p
        variance = (qq - q**2) - 4 * p * (pq - p * q) + 4 * p**2 * (pp - p**2)
        slope = np.divide(0.5, spread, out=np.zeros_like(spread), where=spread > 0)
        error = slope * np.sqrt(np.clip(variance, 0, None) / max(n - 1, 1))
        none, degrees = np.zeros_like(spread), np.full_like(spread, n - 1.0)
        return Estimate(spread, none, error if n > 1 else None, degrees, degrees if n > 1 else None)
