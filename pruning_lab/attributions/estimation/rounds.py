"""Scores that are sampled in rounds: more samples, or more draws for the same samples."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from pruning_lab.attributions.estimation.reduction import Estimate, Reducer, Reduction
from pruning_lab.runtime import distributed


@dataclass(frozen=True)
class Drawn:
    """Per-sample scores, means of ``draws`` draws each, and their sums of squared deviations.

    ``scores`` and ``squares`` are (samples, units) in float64.
    """

    scores: torch.Tensor
    squares: torch.Tensor
    draws: int

    @classmethod
    def of(cls, batches: Iterable[tuple[torch.Tensor, torch.Tensor, int]], draws: int) -> "Drawn":
        """Collect a round from batches: scores, their variances, number of samples on all ranks."""
        scores, variances = [], []
        for values, variance, samples in batches:
            scores.append(distributed.gathered(values, samples).double().cpu())
            variances.append(distributed.gathered(variance, samples).double().cpu())
        return cls(torch.cat(scores), torch.cat(variances) * draws * (draws - 1), draws)

    def with_samples(self, other: "Drawn") -> "Drawn":
        """Combine with more samples, which have as many draws."""
        scores = torch.cat([self.scores, other.scores])
        return Drawn(scores, torch.cat([self.squares, other.squares]), self.draws)

    def with_draws(self, other: "Drawn") -> "Drawn":
        """Combine with more draws for the same samples (Chan et al., 1983)."""
        draws = self.draws + other.draws
        apart = other.scores - self.scores
        between = apart**2 * (self.draws * other.draws / draws)
        scores = self.scores + apart * (other.draws / draws)
        return Drawn(scores, self.squares + other.squares + between, draws)

    def estimate(self, reduction: Reduction) -> Estimate:
        """Return the reduced scores; with one draw per sample the sampling error is unknown."""
        reducer = Reducer(reduction, self.draws, known=self.draws > 1)
        reducer.add(self.scores, self.squares / max(1, self.draws * (self.draws - 1)))
        return reducer.estimate()
