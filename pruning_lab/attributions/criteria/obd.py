"""Second-order loss increase when a unit's weights are removed, by the Hessian's diagonal."""

import torch

from pruning_lab.attributions.evidence.weights import WeightGradientMetric


class OBDAttributionMetric(WeightGradientMetric):
    """1/2 sum over the unit's weights of w^2 g_w^2 per sample: optimal brain damage (LeCun et al.,
    1990) with the mean square of each sample's own gradient as the diagonal of the Hessian.

    The paper computes that diagonal by a second backward pass (Gauss-Newton approximation). For a
    negative log likelihood the mean of g^2 at labels drawn from the model has the same expectation.
    Here the labels are those of the data: a close approximation where the model fits them.
    """

    def formula(self, weights: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        return (weights * gradient).square().sum(2) / 2
