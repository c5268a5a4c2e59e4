"""How many independent rows a unit's map has."""

from typing import ClassVar

import torch

from pruning_lab.attributions.activations import MapMetric


class HRankAttributionMetric(MapMetric):
    """Rank of the unit's map (height, width) per sample (HRank, Lin et al., arXiv 2002.10179).

    In the precision of the activations, of float32 at least, and by torch's tolerance. Of a
    unit without a map, of a Linear, it says whether the unit is not 0; of one with a row of
    positions, whether any is not.
    """

    evidence: ClassVar[str] = "activations"
    needs_gradient: ClassVar[bool] = False

    def formula(self, activation: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        if activation.ndim < 4:
            return activation.reshape(*activation.shape[:2], -1).ne(0).any(2).double()
        maps = activation.flatten(2, -2)
        maps = maps if maps.dtype == torch.float64 else maps.float()
        return torch.linalg.matrix_rank(maps).double()
