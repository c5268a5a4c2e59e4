"""Total distance of a unit's weights from those of the layer's other units."""

import torch

from pruning_lab.attributions.evidence.weights import WeightMetric


class FPGMAttributionMetric(WeightMetric):
    """Sum over the units j of the layer of norm2(W_c - W_j): low near their geometric median, where
    the other units can replace the unit (FPGM, He et al., arXiv 1811.00250)."""

    def formula(self, weights: torch.Tensor) -> torch.Tensor:
        centred = weights - weights.mean(0)  # less cancellation in cdist's matrix product
        return torch.cdist(centred, centred).sum(1)
