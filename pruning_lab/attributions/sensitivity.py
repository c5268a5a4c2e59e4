"""How strongly the loss reacts to a unit."""

import torch

from pruning_lab.attributions.activations import ActivationMetric


class SensitivityAttributionMetric(ActivationMetric):
    """Sum over positions of abs(dL/da), per sample (Mittal et al., arXiv 1812.10240).

    The gradient is that of the sample's own loss; TorchPruner takes that of the batch mean, which
    is smaller by the batch size.
    """

    def formula(self, activation: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.abs().sum(2)
