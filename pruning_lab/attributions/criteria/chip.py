"""Nuclear norm that a layer's maps lose without the unit's map."""

import torch

from pruning_lab.attributions.evidence.activations import MapMetric
from pruning_lab.errors import check_count

MATRICES = 2**22
"""Matrix elements that are decomposed at a time."""


class CHIPAttributionMetric(MapMetric):
    """Nuclear norm of A minus that of A with row c set to 0, per sample, where A (units, positions)
    holds the layer's maps (CHIP, Sui et al., arXiv 2110.13981).

    Computed in float64. Cost, besides the passes: for each unit and sample the singular value
    decomposition of a (units, min(units, positions)) matrix. ``samples`` limits the number of
    samples (default: all).
    """

    options = ("samples",)
    own_pass = True
    evidence = "activations"
    needs_gradient = False

    def _check_options(self) -> None:
        if self.samples is not None:
            check_count("samples", self.samples)

    def formula(self, activation: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        maps = activation.reshape(*activation.shape[:2], -1).double()
        units, positions = maps.shape[1:]
        if positions > units:  # reduce to ``units`` columns with the same singular values
            maps = torch.linalg.qr(maps.mT, mode="r").R.mT
        norms = torch.linalg.svdvals(maps).sum(1, keepdim=True)
        return norms - torch.stack([self._without_each(sample) for sample in maps])

    def _without_each(self, maps: torch.Tensor) -> torch.Tensor:
        """Nuclear norms (units,) of ``maps`` (units, columns) with each row in turn set to 0."""
        rows = torch.eye(len(maps), dtype=torch.bool, device=maps.device).unsqueeze(2)
        chunks = rows.split(max(1, MATRICES // maps.numel()))
        return torch.cat([torch.linalg.svdvals(maps.masked_fill(row, 0)).sum(1) for row in chunks])
