"""Exact Shapley value of each unit, by all coalitions, for small layers."""

import math

import torch

from pruning_lab.attributions.evidence.game import Game
from pruning_lab.attributions.evidence.masks import OneRoundMetric
from pruning_lab.errors import UserError
from pruning_lab.partial_forward.products import product

LARGEST = 20
"""Most units of a layer: 2^20 coalitions, about a million evaluations per sample."""

CHUNK = 4096
"""Coalitions whose losses are computed at a time."""


class ExactShapleyAttributionMetric(OneRoundMetric):
    """The Shapley value itself: sum over S without u of |S|! (n-1-|S|)! / n! (L(S) - L(S and u)).

    Shapley (1953); for units of networks Ancona et al. (arXiv 2006.01795). The reference for the
    sampled values. Cost: 2^units evaluations per sample of the part of the model after the layer.
    Raises UserError for layers of more than 20 units.
    """

    def _rows(self, players: int) -> tuple[int, int]:
        return 2**players, 0

    def _at_most(self, players: int) -> int:
        if players > LARGEST:
            raise UserError(
                f"A layer of {players} units has 2^{players} coalitions; exact values are for up "
                f"to {LARGEST} units. Use the sampled ones (shapley)."
            )
        return max(1, self.memory // (3 * 8 * 2**players))

    @torch.no_grad()
    def _score(self, game: Game, first: int) -> tuple[torch.Tensor, torch.Tensor]:
        players = game.players
        numbers = torch.arange(2**players, device=self.device)
        bits = 2 ** torch.arange(players, device=self.device)
        losses = torch.cat([self._losses_of(game, chunk, bits) for chunk in numbers.split(CHUNK)])
        sizes = sum((numbers & bit > 0).long() for bit in bits)
        weights = torch.tensor(
            [1 / (players * math.comb(players - 1, size)) for size in range(players)],
            dtype=torch.float64, device=self.device,
        )  # fmt: skip
        values = []
        for bit in bits.tolist():
            without = numbers[numbers & bit == 0]
            rises = losses[without] - losses[without + bit]
            values.append(product(weights[sizes[without]], rises))
        scores = torch.stack(values, 1)
        return scores, torch.zeros_like(scores)

    def _losses_of(self, game: Game, numbers: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
        """Losses (coalitions, samples) of coalitions given by their bits, in float64."""
        keep = (numbers[:, None] & bits > 0).unsqueeze(1).expand(-1, game.samples, -1)
        return game.losses(keep).double()
