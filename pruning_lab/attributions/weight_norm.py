"""How large the weights of a unit are."""

from collections.abc import Sequence

import torch
from torch import nn

from pruning_lab.attributions.base import AttributionMetric, Progress
from pruning_lab.attributions.players import Players
from pruning_lab.attributions.reduction import Estimate
from pruning_lab.errors import UserError
from pruning_lab.graph.kinds import TransposedConvolution
from pruning_lab.ledger import Prediction


class WeightNormAttributionMetric(AttributionMetric):
    """Sum of abs(w) over the weights of a unit, without its bias (Li et al., arXiv 1608.08710).

    Uses no data: the scores are (units,) whatever the reduction. Of units that only go together it
    is the sum of theirs.
    """

    def _estimate(
        self, players: Sequence[Players], behind: bool, progress: Progress
    ) -> list[Estimate]:
        return [Estimate(_norms(each).cpu().numpy()) for each in players]

    def _predict(self, players: Sequence[Players], behind: bool) -> Prediction:
        return Prediction()


def _norms(players: Players) -> torch.Tensor:
    if players.count is None:
        return _norm(players.first)
    total = torch.zeros(players.count + 1, dtype=torch.float64)  # the last is NOBODY's
    for module, row in players.members.items():
        if row is not None:
            total.index_add_(0, row % len(total), _norm(module).cpu())
    return total[:-1]


def _norm(module: nn.Module) -> torch.Tensor:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor):
        raise UserError(
            f"{type(module).__name__} has no weights, so its units have no weight norm. "
            "Score a Linear, a convolution or a BatchNorm."
        )
    weight = weight.detach().double().abs()
    if isinstance(module, TransposedConvolution):  # (inputs, units / groups, ...)
        weight = weight.unflatten(0, (module.groups, -1)).transpose(1, 2).flatten(0, 1)
    return weight.flatten(1).sum(1) if weight.ndim > 1 else weight
