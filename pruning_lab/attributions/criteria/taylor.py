"""First-order loss change when a unit is removed."""

import torch

from pruning_lab.attributions.evidence.activations import ActivationMetric
from pruning_lab.errors import check_switch


class TaylorAttributionMetric(ActivationMetric):
    """abs(sum over positions of a dL/da) per sample (Molchanov et al., arXiv 1611.06440); with
    ``signed`` minus the sum itself, the first-order estimate of L(unit at 0) - L.

    The paper divides by the number of positions and normalises each layer by its l2 norm; here, as
    in TorchPruner, neither is done. Gradients are of each sample's own loss. Default: unsigned.
    """

    options = ("signed",)
    signed: bool = False

    def _check_options(self) -> None:
        check_switch("signed", self.signed)

    def formula(self, activation: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        rise = -(activation * gradient).sum(2)
        return rise if self.signed else rise.abs()
