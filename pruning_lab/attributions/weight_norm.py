"""How large the weights of a unit are."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from pruning_lab.attributions.base import AttributionMetric
from pruning_lab.errors import UserError
from pruning_lab.graph.kinds import TransposedConvolution


class WeightNormAttributionMetric(AttributionMetric):
    """Sum of abs(w) over the weights of a unit, without its bias (Li et al., arXiv 1608.08710).

    Uses no data: the scores are (units,) whatever the reduction.
    """

    def _scores(
        self,
        modules: Sequence[nn.Module],
        behind: bool,
        on_progress: Callable[[int, int], None],
    ) -> list[np.ndarray]:
        return [_norm(module) for module in modules]


def _norm(module: nn.Module) -> np.ndarray:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor):
        raise UserError(
            f"{type(module).__name__} has no weights, so its units have no weight norm. "
            "Score a Linear, a convolution or a BatchNorm."
        )
    weight = weight.detach().double().abs()
    if isinstance(module, TransposedConvolution):  # (inputs, units / groups, ...)
        weight = weight.unflatten(0, (module.groups, -1)).transpose(1, 2).flatten(0, 1)
    return weight.flatten(1).sum(1).cpu().numpy() if weight.ndim > 1 else weight.cpu().numpy()
