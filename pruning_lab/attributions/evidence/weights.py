"""Criteria on the weights of a unit alone."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import nn

from pruning_lab.attributions.base import AttributionMetric, Progress
from pruning_lab.attributions.estimation.reduction import Estimate
from pruning_lab.attributions.evidence.gathering import ask, sum_of_members
from pruning_lab.attributions.unit_groups import UnitGroups
from pruning_lab.errors import UserError
from pruning_lab.graph.kinds import LAYERS, TransposedConvolution
from pruning_lab.profiling.passes import Prediction


class WeightMetric(AttributionMetric):
    """A criterion on the weights of a layer's units, without biases.

    Uses no data: the scores are (units,) whatever the reduction. A unit group's score is the sum of
    its units' scores. Raises UserError for a module without weights.
    """

    evidence: ClassVar[str] = "weights"

    @abstractmethod
    def formula(self, weights: torch.Tensor) -> torch.Tensor:
        """Return scores (units,) of a layer from its float64 weights (units, weights of each)."""

    def _estimate(
        self, unit_groups: Sequence[UnitGroups], after_activation: bool, progress: Progress
    ) -> list[Estimate]:
        read = self._reader()
        return [Estimate(self._scores(groups, read).numpy()) for groups in unit_groups]

    def _check_unit_groups(self, unit_groups: Sequence[UnitGroups], after_activation: bool) -> None:
        read = self._reader()
        for module in (module for groups in unit_groups for module in groups.members):
            read(module)
        for groups in unit_groups[:1]:
            self._scores(groups, read)

    def _predict(self, unit_groups: Sequence[UnitGroups], after_activation: bool) -> Prediction:
        return Prediction()

    def _reader(self) -> Callable[[nn.Module], torch.Tensor]:
        """Return a function: module -> the weights of its units, (units, weights of each)."""
        return lambda module: rows_of(module, weight_of(module))

    def _scores(
        self, unit_groups: UnitGroups, read: Callable[[nn.Module], torch.Tensor]
    ) -> torch.Tensor:
        scores = []
        for weights in map(read, unit_groups.members):
            of_units = ask(self.formula, weights.shape[:1], "(units,)", weights.double())
            if not of_units.isfinite().all():
                raise UserError(
                    f"{type(self).__name__}: scores are not finite. Look at the model's weights."
                )
            scores.append(of_units.cpu())
        return sum_of_members(scores, unit_groups.members.values(), unit_groups.count)


def weight_of(module: nn.Module) -> torch.Tensor:
    """Return the weight of a module; UserError if it has none, or if its layout is unknown."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor):
        raise UserError(
            f"{type(module).__name__} has no weights, so its units have no score by them. "
            "Score a Linear, a convolution or a BatchNorm."
        )
    if weight.ndim > 1 and not isinstance(module, LAYERS):
        raise UserError(
            f"Cannot tell which dimension of {type(module).__name__}'s weight "
            f"{tuple(weight.shape)} holds the units. Score a Linear, a convolution or a BatchNorm, "
            "or choose a criterion on activations."
        )
    return weight.detach()


def rows_of(module: nn.Module, weight: torch.Tensor) -> torch.Tensor:
    """Reshape a module's weight, or a tensor of its shape, to (units, weights of each)."""
    if isinstance(module, TransposedConvolution):  # (inputs, units / groups, ...)
        weight = weight.unflatten(0, (module.groups, -1)).transpose(1, 2).flatten(0, 1)
    return weight.flatten(1) if weight.ndim > 1 else weight.unsqueeze(1)
