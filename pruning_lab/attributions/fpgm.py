"""How far a unit's weights are from those of the others."""

import torch

from pruning_lab.attributions.weights import WeightMetric


class FPGMAttributionMetric(WeightMetric):
    """Sum over the units j of the layer of norm2(W_c - W_j): low near their geometric median, which
    the others can replace (FPGM, He et al., arXiv 1811.00250)."""

    def formula(self, weights: torch.Tensor) -> torch.Tensor:
        # not by matrix products, which cancel where units are nearly alike
        return torch.cdist(weights, weights, compute_mode="donot_use_mm_for_euclid_dist").sum(1)
