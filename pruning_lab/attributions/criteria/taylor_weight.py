"""Squared first-order loss change when a unit's weights are removed."""

import torch

from pruning_lab.attributions.base import Site
from pruning_lab.attributions.evidence.activations import ActivationMetric
from pruning_lab.attributions.evidence.gathering import Evidence, Gathering
from pruning_lab.attributions.unit_groups import UnitGroups
from pruning_lab.errors import UserError, check_switch
from pruning_lab.graph.added_code import as_torch_wrote_it
from pruning_lab.graph.kinds import LAYERS, BatchNorm
from pruning_lab.partial_forward.cut import ModelGraph


class TaylorWeightAttributionMetric(ActivationMetric):
    """(sum over the unit's weights of w g_w)^2 per sample (Molchanov et al., arXiv 1906.10771);
    with ``gate`` that of scale and bias of the next BatchNorm, (sum of a g)^2 at its output.

    A layer's output a without its bias b is linear in its weights: the sum of w g_w is the sum over
    positions of (a - b) g, so no gradient of a weight is needed. The paper's gradients are those of
    a batch's mean loss; here they are of each sample's own. Raises UserError for layers that are
    not torch's own, and with ``gate`` (default false) for those not directly before a BatchNorm.
    """

    options = ("gate",)
    evidence = "weights and their gradients"
    gate: bool = False

    def _check_options(self) -> None:
        check_switch("gate", self.gate)

    def _gathering(
        self, graph: ModelGraph, unit_groups: UnitGroups, after_activation: bool
    ) -> Gathering:
        sites = self._sites(graph, unit_groups, after_activation=False)
        return Gathering([self._own(graph, site) for site in sites], unit_groups.count)

    def _own(self, graph: ModelGraph, site: Site) -> Site:
        """Site whose output is linear in the weights to score; UserError where there is none."""
        module = site.module
        if not as_torch_wrote_it(module):
            raise UserError(
                f"A hook, or code that replaces torch's own, changes what {module} returns: it may "
                "not be linear in the weights. Remove that code, or choose another criterion."
            )
        if self.gate and not isinstance(module, BatchNorm):
            norm = graph.norm_after(module)
            if norm is None:
                raise UserError(
                    f"{module} has no BatchNorm directly after it, which metric.gate=true needs. "
                    "Choose metric.gate=false, or another model."
                )
            return site._replace(node=graph.site(norm), module=norm)
        if not isinstance(module, (*LAYERS, BatchNorm)) or module.weight is None:
            raise UserError(
                f"{type(module).__name__} has no weights, so its units have no score by them. "
                "Score a Linear, a convolution or a BatchNorm."
            )
        if not type(module).__module__.startswith("torch.nn."):
            raise UserError(
                f"{type(module).__name__} has code of its own: whether its output is linear in its "
                "weights is not known. Choose obd or taylor."
            )
        return site

    def _scores(self, gathering: Gathering, evidence: Evidence) -> torch.Tensor:
        if not self.gate:
            read = [(site, *evidence[site.node]) for site in gathering.sites]
            evidence = {site.node: (_without_bias(a, site), gradient) for site, a, gradient in read}
        return super()._scores(gathering, evidence)

    def formula(self, activation: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        return (activation * gradient).sum(2) ** 2


def _without_bias(activation: torch.Tensor, site: Site) -> torch.Tensor:
    bias = getattr(site.module, "bias", None)
    if bias is None:
        return activation
    return (activation.movedim(site.axis, -1) - bias.detach()).movedim(-1, site.axis)
