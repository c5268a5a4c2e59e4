"""How far a unit's weights are from those of the others."""

import torch

from pruning_lab.attributions.weights import WeightMetric


class FPGMAttributionMetric(WeightMetric):
    """Sum over the units j of the layer of norm2(W_c - W_j): low near their geometric median, which
    the others can replace (FPGM, He et al., arXiv 1811.00250)."""

    def formula(self, weights: torch.Tensor) -> torch.Tensor:
        around = weights - weights.mean(0)  # the products behind cdist cancel less there
        return torch.cdist(around, around).sum(1)
