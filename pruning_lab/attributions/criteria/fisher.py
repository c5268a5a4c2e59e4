"""Second-order loss increase when a unit is removed, by the Fisher information."""

import torch

from pruning_lab.attributions.evidence.activations import ActivationMetric


class FisherAttributionMetric(ActivationMetric):
    """1/2 (sum over positions of a dL/da)^2 per sample; its mean is 1/(2N) sum_n (...)^2 (Theis et
    al., arXiv 1801.05787).

    As in the paper, gradients are at the labels of the data, for N training samples (the empirical
    Fisher information). The paper's penalty on FLOPs is schedule.flops_penalty.
    """

    def formula(self, activation: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        return (activation * gradient).sum(2) ** 2 / 2
