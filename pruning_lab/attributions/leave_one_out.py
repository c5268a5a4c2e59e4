"""What really happens when one unit goes."""

from typing import ClassVar

import torch

from pruning_lab.attributions.game import Game
from pruning_lab.attributions.masks import OneRoundMetric, Parts


class LeaveOneOutAttributionMetric(OneRoundMetric):
    """L(unit at 0) - L: by what the loss rises when the unit goes and all others stay (the oracle
    of Molchanov et al., arXiv 1611.06440).

    With its sign, as the paper's oracle-loss; the paper also tries the magnitude, oracle-abs. Cost:
    one evaluation a unit and sample of the part of the model behind the site.
    """

    skips: ClassVar[bool] = True

    def _rows(self, players: int) -> tuple[int, int]:
        return players + 2, 0  # and all players, and none

    def _passes(self, part: Parts) -> tuple[float, float]:
        return part.removals(), 0.0

    @torch.no_grad()
    def _score(self, game: Game, first: int) -> tuple[torch.Tensor, torch.Tensor]:
        rises = game.removals()
        return rises, torch.zeros_like(rises)
