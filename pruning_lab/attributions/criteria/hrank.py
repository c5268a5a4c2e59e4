"""Rank of each unit's feature map."""

import torch

from pruning_lab.attributions.evidence.activations import MapMetric


class HRankAttributionMetric(MapMetric):
    """Rank of the unit's map (height, width) per sample (HRank, Lin et al., arXiv 2002.10179).

    Computed in the precision of the activations, at least float32, with torch's default
    tolerance. Units without height and width (of a Linear, or with one row of positions) score 1
    if any activation differs from 0, else 0.
    """

    evidence = "activations"
    needs_gradient = False

    def formula(self, activation: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        if activation.ndim < 4:
            return activation.reshape(*activation.shape[:2], -1).ne(0).any(2).double()
        maps = activation.flatten(2, -2)
        maps = maps if maps.dtype == torch.float64 else maps.float()
        return torch.linalg.matrix_rank(maps).double()
