"""What the loss would rise by if a unit went, to second order, by the Fisher information."""

import torch

from pruning_lab.attributions.activations import ActivationMetric


class FisherAttributionMetric(ActivationMetric):
    """1/2 (sum over positions of a dL/da)^2 per sample; its mean is 1/(2N) sum_n (...)^2 (Theis et
    al., arXiv 1801.05787).

    The paper subtracts a penalty on FLOPs: schedule.flops_penalty. It takes N training samples at
    the labels of the data (the empirical Fisher information), as is done here.
    """

    def formula(self, activation: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        return (activation * gradient).sum(2) ** 2 / 2
