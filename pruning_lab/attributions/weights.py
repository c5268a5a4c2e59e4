"""Criteria on the weights of a unit alone."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import nn

from pruning_lab.attributions.base import AttributionMetric, Progress
from pruning_lab.attributions.formulas import ask
from pruning_lab.attributions.gathering import sum_of_members
from pruning_lab.attributions.players import Players
from pruning_lab.attributions.reduction import Estimate
from pruning_lab.errors import UserError
from pruning_lab.graph.kinds import LAYERS, TransposedConvolution
from pruning_lab.ledger import Prediction


class WeightMetric(AttributionMetric):
    """A criterion on the weights of a layer's units, without biases.

    Uses no data: the scores are (units,) whatever the reduction. Of units that only go together it
    is the sum of theirs. Raises UserError for a module without weights.
    """

    evidence: ClassVar[str] = "weights"

    @abstractmethod
    def formula(self, weights: torch.Tensor) -> torch.Tensor:
        """Scores (units,) of a layer from its weights in float64, (units, weights of each)."""

    def _estimate(
        self, players: Sequence[Players], behind: bool, progress: Progress
    ) -> list[Estimate]:
        read = self._reader()
        return [Estimate(self._scores(each, read).cpu().numpy()) for each in players]

    def _check_players(self, players: Sequence[Players], behind: bool) -> None:
        read = self._reader()
        for module in (module for each in players for module in each.members):
            read(module)
        for each in players[:1]:
            self._scores(each, read)

    def _predict(self, players: Sequence[Players], behind: bool) -> Prediction:
        return Prediction()

    def _reader(self) -> Callable[[nn.Module], torch.Tensor]:
        """What gives the weights of a module's units, (units, weights of each)."""
        return lambda module: rows_of(module, weight_of(module))

    def _scores(self, players: Players, read: Callable[[nn.Module], torch.Tensor]) -> torch.Tensor:
        if players.count is None:
            return self._of(read(players.first))
        rows = {module: row for module, row in players.members.items() if row is not None}
        scores = [self._of(read(module)).cpu() for module in rows]
        return sum_of_members(scores, list(rows.values()), players.count)

    def _of(self, weights: torch.Tensor) -> torch.Tensor:
        """The formula's scores of a module's units."""
        scores = ask(self.formula, weights.shape[:1], "(units,)", weights.double())
        if not scores.isfinite().all():
            raise UserError(
                f"{type(self).__name__}: scores are not finite. Look at the model's weights."
            )
        return scores


def weight_of(module: nn.Module) -> torch.Tensor:
    """The weight of a module; UserError where it has none."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor):
        raise UserError(
            f"{type(module).__name__} has no weights, so its units have no score by them. "
            "Score a Linear, a convolution or a BatchNorm."
        )
    if weight.ndim > 1 and not isinstance(module, LAYERS):
        raise UserError(
            f"Which dimension of {type(module).__name__}'s weight {tuple(weight.shape)} holds the "
            "units is not known. Score a Linear, a convolution or a BatchNorm, or choose a "
            "criterion on activations."
        )
    return weight.detach()


def rows_of(module: nn.Module, weight: torch.Tensor) -> torch.Tensor:
    """A weight of a module, or something of its shape, as (units, weights of each)."""
    if isinstance(module, TransposedConvolution):  # (inputs, units / groups, ...)
        weight = weight.unflatten(0, (module.groups, -1)).transpose(1, 2).flatten(0, 1)
    return weight.flatten(1) if weight.ndim > 1 else weight.unsqueeze(1)
