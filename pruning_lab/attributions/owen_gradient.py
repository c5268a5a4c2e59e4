"""How the loss falls with a unit's mask, on average over random coalitions."""

from typing import ClassVar

import numpy as np
import torch

from pruning_lab.attributions.game import Game
from pruning_lab.attributions.paired_masks import PairedMasksMetric


class OwenGradientAttributionMetric(PairedMasksMetric):
    """-E[dL/dm_u] at random masks m of the units: keep each with a probability drawn from [0, 1].

    The Shapley value is the expected rise of the loss when the unit goes, over such masks: the
    multilinear extension (Owen, 1972; sampled by Okhrati & Lipani, arXiv 2010.12082). Here the rise
    is replaced by the derivative, so that one pass forward and back serves all units of a layer: a
    biased value that ranks units nearly alike. ``masks`` a sample, in antithetic pairs (a mask and
    its opposite), from a stream that belongs to (seed, number of the sample, number of the pair).
    """

    evidence: ClassVar[str] = "gradients under masks"
    needs_gradient: ClassVar[bool] = True

    def _rows(self, players: int) -> tuple[int, int]:
        return self.masks, self.masks

    def _draw(self, stream: np.random.Generator, players: int) -> np.ndarray:
        return stream.random(players) < stream.random()

    def _of_pair(self, game: Game, keep: torch.Tensor) -> torch.Tensor:
        masks = torch.stack([keep, ~keep]).to(game.dtype)
        return -game.gradients(masks).mean(0)
