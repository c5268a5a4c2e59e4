"""Exact Shapley value of each unit, by all coalitions, for small layers."""

import math

import torch

from pruning_lab.attributions.evidence.game import Game
from pruning_lab.attributions.evidence.masks import OneRoundMetric
from pruning_lab.errors import UserError
from pruning_lab.partial_forward.first_layer import product

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
        numbers = torch.arange(2**players, device=self.device)  # their bits are the coalitions
        bits = 2 ** torch.arange(players, device=self.device)
        keep = torch.cat([chunk[:, None] & bits > 0 for chunk in numbers.split(CHUNK)])
        masks = keep.unsqueeze(1).expand(-1, game.samples, -1)
        losses = torch.cat([game.losses(chunk) for chunk in masks.split(CHUNK)]).double()
        weights = [1 / (players * math.comb(players - 1, size)) for size in range(players)]
        weights.append(0.0)  # of all units: to no unit is this a coalition of the others
        by_size = torch.tensor(weights, dtype=torch.float64, device=self.device)
        weight = by_size[keep.sum(1)]
        values = []
        for unit, bit in enumerate(bits.tolist()):
            without = numbers[~keep[:, unit]]
            values.append(product(weight[without], losses[without] - losses[without + bit]))
        scores = torch.stack(values, 1)
        return scores, torch.zeros_like(scores)
