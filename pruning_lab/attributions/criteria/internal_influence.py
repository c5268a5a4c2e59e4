"""Decrease of the loss along the path from all units at 0 to their activations."""

import torch

from pruning_lab.attributions.evidence.game import Game
from pruning_lab.attributions.evidence.masks import MaskMetric, OneRoundMetric
from pruning_lab.errors import check_count


class InternalInfluenceAttributionMetric(OneRoundMetric):
    """-integral over t from 0 to 1 of sum over positions of a dL/da' at a' = t a, all units of the
    layer at once: minus activation times the mean gradient along the path.

    The internal influence of Leino et al. (arXiv 1802.03788) with this path as the distribution of
    interest and the loss as the quantity. At the input it is integrated gradients (Sundararajan et
    al., arXiv 1703.01365) and is complete like these: the scores of a layer sum to L(no unit) -
    L(all units). Midpoint rule with ``steps`` (default 16) forward and backward passes per sample.
    """

    evidence = "gradients under masks"
    needs_gradient = True
    options = ("steps", *MaskMetric.options)
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
