"""Squared norm of a unit's weights relative to the units of at least that norm."""

import torch

from pruning_lab.attributions.evidence.weights import WeightMetric


class LAMPAttributionMetric(WeightMetric):
    """norm2(W_c)^2 over the sum of norm2(W_j)^2 of all units j of the layer with at least that norm
    (LAMP, Lee et al., arXiv 2010.07611).

    The paper scores single weights; here a unit's squared norm replaces the squared weight. The
    largest unit of every layer scores 1, so that a global ranking removes it last; units of equal
    norm are in each other's sum. In a layer of zeros all units score 0.
    """

    def formula(self, weights: torch.Tensor) -> torch.Tensor:
        squares = (weights**2).sum(1)
        ascending = squares.sort().values
        tails = ascending.flip(0).cumsum(0).flip(0)  # each square plus all larger ones
        denominators = tails[torch.searchsorted(ascending, squares)]
        return squares / denominators.clamp(min=torch.finfo(squares.dtype).tiny)
