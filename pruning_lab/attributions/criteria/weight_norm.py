"""l1 norm of a unit's weights."""

import torch

from pruning_lab.attributions.evidence.weights import WeightMetric


class WeightNormAttributionMetric(WeightMetric):
    """Sum of abs(w) over the weights of a unit, without its bias (Li et al., arXiv 1608.08710)."""

    def formula(self, weights: torch.Tensor) -> torch.Tensor:
        return weights.abs().sum(1)
