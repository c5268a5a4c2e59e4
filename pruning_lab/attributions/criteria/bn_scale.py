"""Magnitude of the factor by which BatchNorm scales each unit."""

from collections.abc import Callable

import torch
from torch import nn

from pruning_lab.attributions.evidence.weights import WeightMetric, rows_of, weight_of
from pruning_lab.errors import UserError
from pruning_lab.graph.kinds import BatchNorm


class BNScaleAttributionMetric(WeightMetric):
    """abs(gamma_c) of the BatchNorm that directly follows the layer (network slimming, Liu et al.,
    arXiv 1708.06519).

    The paper trains with an L1 penalty on gamma; here the model's gamma is used as it is. Raises
    UserError for a layer without a BatchNorm directly after it, or with one that has no gamma.
    """

    def formula(self, weights: torch.Tensor) -> torch.Tensor:
        return weights.abs().squeeze(1)

    def _reader(self) -> Callable[[nn.Module], torch.Tensor]:
        graph = self._graph()
        names = {module: name for name, module in self.model.named_modules()}

        def scale(module: nn.Module) -> torch.Tensor:
            norm = module if isinstance(module, BatchNorm) else graph.norm_after(module)
            if norm is None or norm.weight is None:
                raise UserError(
                    f"'{names[module]}' has no BatchNorm with a scale directly after it, so "
                    "bn_scale cannot score its units. Choose another criterion, or another model."
                )
            return rows_of(norm, weight_of(norm))

        return scale
