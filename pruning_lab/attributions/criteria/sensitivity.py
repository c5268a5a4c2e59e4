"""Magnitude of the loss gradient at a unit's activation."""

import torch

from pruning_lab.attributions.evidence.activations import ActivationMetric


class SensitivityAttributionMetric(ActivationMetric):
    """Sum over positions of abs(dL/da), per sample (Mittal et al., arXiv 1812.10240).

    The gradient is that of the sample's own loss; TorchPruner takes that of the batch's mean loss,
    which is smaller by a factor of the batch size.
    """

    def formula(self, activation: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.abs().sum(2)
