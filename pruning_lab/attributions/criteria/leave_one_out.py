"""Actual loss increase when one unit is removed."""

import torch

from pruning_lab.attributions.evidence.game import Game
from pruning_lab.attributions.evidence.masks import OneRoundMetric, Parts


class LeaveOneOutAttributionMetric(OneRoundMetric):
    """L(unit at 0) - L: loss increase when the unit is removed and all others remain (the oracle
    of Molchanov et al., arXiv 1611.06440).

    Signed, as the paper's oracle-loss; the paper also tries the magnitude, oracle-abs. Cost: one
    evaluation per unit and sample of the part of the model after the layer.
    """

    skips = True

    def _rows(self, players: int) -> tuple[int, int]:
        return players + 2, 0  # one per unit, plus all units and no unit

    def _passes(self, part: Parts) -> tuple[float, float]:
        return part.removals(), 0.0

    @torch.no_grad()
    def _score(self, game: Game, first: int) -> tuple[torch.Tensor, torch.Tensor]:
        rises = game.removals()
        return rises, torch.zeros_like(rises)
