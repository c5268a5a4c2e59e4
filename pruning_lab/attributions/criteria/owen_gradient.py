"""Minus the mean gradient of the loss with respect to a unit's mask, at random masks."""

import numpy as np
import torch

from pruning_lab.attributions.evidence.game import Game
from pruning_lab.attributions.evidence.paired_masks import PairedMasksMetric


class OwenGradientAttributionMetric(PairedMasksMetric):
    """-E[dL/dm_u] over random masks m that keep each unit with probability p, p uniform on [0, 1].

    The Shapley value is the expected loss increase when the unit is removed, over such masks: the
    multilinear extension (Owen, 1972; sampled by Okhrati & Lipani, arXiv 2010.12082). Here the
    derivative replaces the increase: biased, but with nearly the same ranking, and one forward and
    backward pass serves all units of a layer. Each sample has ``masks`` (default 8) in antithetic
    pairs (a mask and its complement); (seed, sample number, pair number) seeds the pair's stream.
    """

    evidence = "gradients under masks"
    needs_gradient = True

    def _rows(self, players: int) -> tuple[int, int]:
        return self.masks, self.masks

    def _draw(self, stream: np.random.Generator, unit_groups: int) -> np.ndarray:
        return stream.random(unit_groups) < stream.random()

    def _of_pair(self, game: Game, keep: torch.Tensor) -> torch.Tensor:
        masks = torch.stack([keep, ~keep]).to(game.dtype)
        return -game.gradients(masks).mean(0)
