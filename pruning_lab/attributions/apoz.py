"""How often a unit is active."""

from typing import ClassVar

import torch

from pruning_lab.attributions.activations import ActivationMetric
from pruning_lab.attributions.reduction import finite


class APoZAttributionMetric(ActivationMetric):
    """Share of positive activations: mean over positions of [a > 0], in [0, 1].

    One minus the average percentage of zeros of Hu et al. (arXiv 1607.03250) where activations
    are not negative, so that higher means keep, as for every criterion here. TorchPruner sums
    over space where this takes the mean.
    """

    evidence: ClassVar[str] = "activations"
    needs_gradient: ClassVar[bool] = False

    def formula(self, activation: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        return (finite(activation) > 0).sum(2).double() / activation.shape[2]
