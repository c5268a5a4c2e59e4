"""Mean magnitude of a unit's activations."""

import torch

from pruning_lab.attributions.evidence.activations import ActivationMetric


class MeanActivationAttributionMetric(ActivationMetric):
    """Mean over positions of abs(a), per sample (Molchanov et al., arXiv 1611.06440).

    The paper takes the mean of a after a ReLU, where it is the same.
    """

    evidence = "activations"
    needs_gradient = False

    def formula(self, activation: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        return activation.abs().mean(2)
