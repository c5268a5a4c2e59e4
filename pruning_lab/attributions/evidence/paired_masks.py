"""Criteria on random coalitions, each paired with its complement."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import torch

from pruning_lab.attributions.evidence.game import Game
from pruning_lab.attributions.evidence.masks import MaskMetric, OneRoundMetric
from pruning_lab.errors import UserError, check_count, check_seed


class PairedMasksMetric(OneRoundMetric):
    """A criterion on the mean over antithetic pairs: a random coalition and its complement.

    ``masks`` coalitions per sample, in pairs. Each pair has a random stream of its own, seeded by
    (seed, number of the sample, number of the pair).
    """

    options: ClassVar[tuple[str, ...]] = ("masks", *MaskMetric.options, "seed")
    masks: int = 8
    seed: int = 0

    def _check_options(self) -> None:
        super()._check_options()
        check_seed("seed", self.seed)
        check_count("masks", self.masks, 4)
        if self.masks % 2:
            raise UserError(f"masks={self.masks} is not possible; they come in pairs.")

    def _draws(self) -> int:
        return self.masks // 2

    def _coalitions(self, game: Game, first: int) -> Iterator[torch.Tensor]:
        """Yield the first coalition of each pair for all samples, (samples, players)."""
        for pair in range(self._draws()):
            numbers = range(first, first + game.samples)
            streams = [np.random.default_rng([self.seed, number, pair]) for number in numbers]
            kept = np.stack([self._draw(stream, game.players) for stream in streams])
            yield torch.as_tensor(kept, device=self.device)

    def _draw(self, stream: np.random.Generator, players: int) -> np.ndarray:
        """Draw a coalition, (players,), that keeps each player with probability 1/2."""
        return stream.random(players) < 0.5

    def _score(self, game: Game, first: int) -> tuple[torch.Tensor, torch.Tensor]:
        scores = torch.stack([self._of_pair(game, keep) for keep in self._coalitions(game, first)])
        scores = scores.double()
        return scores.mean(0), scores.var(0) / len(scores)

    @abstractmethod
    def _of_pair(self, game: Game, keep: torch.Tensor) -> torch.Tensor:
        """Return scores (samples, players) from a coalition and its complement."""
