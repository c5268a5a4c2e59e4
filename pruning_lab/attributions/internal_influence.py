"""What the loss falls by along the way from no unit to all of them."""

from typing import ClassVar

import torch

from pruning_lab.attributions.game import Game
from pruning_lab.attributions.masks import MaskMetric, OneRoundMetric
from pruning_lab.errors import check_count


class InternalInfluenceAttributionMetric(OneRoundMetric):
    """-integral over t from 0 to 1 of sum over positions of a dL/da' at a' = t a, all units of the
    layer at once: minus its activation times the gradient on the way there.

    The internal influence of Leino et al. (arXiv 1802.03788) with that way as its distribution of
    interest and the loss as its quantity; at the input it is integrated gradients (Sundararajan et
    al., arXiv 1703.01365), whose completeness it has: the scores of a layer sum to L(no unit) -
    L(all units). By the midpoint rule with ``steps`` passes forward and back.
    """

    evidence: ClassVar[str] = "gradients under masks"
    needs_gradient: ClassVar[bool] = True
    options: ClassVar[tuple[str, ...]] = ("steps", *MaskMetric.options)
    steps: int = 16

    def _check_options(self) -> None:
        super()._check_options()
        check_count("steps", self.steps)

    def _rows(self, players: int) -> tuple[int, int]:
        return self.steps, self.steps

    def _score(self, game: Game, first: int) -> tuple[torch.Tensor, torch.Tensor]:
        total = torch.zeros(game.samples, game.players, dtype=torch.float64, device=self.device)
        for step in range(self.steps):
            mask = torch.full((1, *total.shape), (step + 0.5) / self.steps, device=self.device)
            total -= game.gradients(mask.to(game.dtype))[0]
        return total / self.steps, torch.zeros_like(total)
