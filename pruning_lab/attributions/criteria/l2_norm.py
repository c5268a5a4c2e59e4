"""Squared l2 norm of a unit's weights."""

import torch

from pruning_lab.attributions.evidence.weights import WeightMetric


class L2NormAttributionMetric(WeightMetric):
    """Sum of w^2 over the weights of a unit, without its bias (Li et al., arXiv 1608.08710).

    The paper's choice is the sum of abs(w), which is weight_norm.
    """

    def formula(self, weights: torch.Tensor) -> torch.Tensor:
        return (weights**2).sum(1)
