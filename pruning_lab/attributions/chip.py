"""How much a unit's map adds to what the maps of all units span."""

from typing import ClassVar

import torch

from pruning_lab.attributions.activations import MapMetric
from pruning_lab.errors import check_count

MATRICES = 2**22
"""Numbers of matrices that are decomposed at a time."""


class CHIPAttributionMetric(MapMetric):
    """Nuclear norm of A minus that of A with row c at 0, per sample, where A (units, positions) are
    the layer's maps (CHIP, Sui et al., arXiv 2110.13981).

    In float64. Cost, beside the passes: a singular value decomposition a unit and sample, of
    matrices with at most as many columns as there are units or positions. ``samples`` limits how
    many are read.
    """

    options: ClassVar[tuple[str, ...]] = ("samples",)
    own_pass: ClassVar[bool] = True
    evidence: ClassVar[str] = "activations"
    needs_gradient: ClassVar[bool] = False

    def _check_options(self) -> None:
        if self.samples is not None:
            check_count("samples", self.samples)

    def formula(self, activation: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        maps = activation.reshape(*activation.shape[:2], -1).double()
        units, positions = maps.shape[1:]
        if positions > units:  # rotated into as many columns: singular values stay
            maps = torch.linalg.qr(maps.mT, mode="r").R.mT
        whole = torch.linalg.svdvals(maps).sum(1, keepdim=True)
        return whole - torch.stack([self._without_each(each) for each in maps])

    def _without_each(self, maps: torch.Tensor) -> torch.Tensor:
        """The nuclear norms of (units, columns) when each of the rows is put to 0, (units,)."""
        at_once = max(1, MATRICES // maps.numel())
        norms = []
        for rows in torch.arange(len(maps), device=maps.device).split(at_once):
            without = maps.repeat(len(rows), 1, 1)
            without[torch.arange(len(rows)), rows] = 0
            norms.append(torch.linalg.svdvals(without).sum(1))
        return torch.cat(norms)
