"""What the loss would rise by if a unit's weights went, by the diagonal of its curvature."""

import torch

from pruning_lab.attributions.weight_gradients import WeightGradientMetric


class OBDAttributionMetric(WeightGradientMetric):
    """1/2 sum over the unit's weights of w^2 g_w^2 per sample: optimal brain damage (LeCun et al.,
    1990) with the mean square of each sample's own gradient for the diagonal of the Hessian.

    The paper computes that diagonal by a second way back, in the Gauss-Newton approximation. For a
    negative log likelihood the mean of g^2 at labels drawn from the model has the same expectation;
    here the labels are the data's, which is near where the model fits them.
    """

    def formula(self, weights: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        return (weights * gradient).square().sum(2) / 2
