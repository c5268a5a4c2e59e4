"""Share of positions where a unit's activation is positive."""

import torch

from pruning_lab.attributions.estimation.reduction import finite
from pruning_lab.attributions.evidence.activations import ActivationMetric


class APoZAttributionMetric(ActivationMetric):
    """Share of positive activations: mean over positions of [a > 0], in [0, 1].

    One minus the average percentage of zeros of Hu et al. (arXiv 1607.03250) where activations are
    not negative, so that a higher score means keep, as for all criteria. TorchPruner takes the sum
    over positions, not the mean.
    """

    evidence = "activations"
    needs_gradient = False

    def formula(self, activation: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        return (finite(activation) > 0).sum(2).double() / activation.shape[2]
