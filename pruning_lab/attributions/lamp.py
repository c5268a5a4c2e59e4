"""How large the weights of a unit are beside those that would go after it."""

import torch

from pruning_lab.attributions.weights import WeightMetric


class LAMPAttributionMetric(WeightMetric):
    """norm2(W_c)^2 over the sum of norm2(W_j)^2 of all units j of the layer with at least that norm
    (LAMP, Lee et al., arXiv 2010.07611).

    The paper scores single weights; here a unit's squared norm stands for the squared weight. The
    largest unit of every layer scores 1, so that a global ranking takes it last; of equal norms
    each counts the other. A layer of zeros scores 0.
    """

    def formula(self, weights: torch.Tensor) -> torch.Tensor:
        squares = (weights**2).sum(1)
        ascending = squares.sort().values
        left = ascending.flip(0).cumsum(0).flip(0)  # what is as large, or larger
        denominators = left[torch.searchsorted(ascending, squares)]
        return squares / denominators.clamp(min=torch.finfo(squares.dtype).tiny)
