"""Banzhaf value of each unit: mean loss increase over equally likely coalitions."""

import torch

from pruning_lab.attributions.evidence.game import Game
from pruning_lab.attributions.evidence.paired_masks import PairedMasksMetric


class BanzhafAttributionMetric(PairedMasksMetric):
    """E[L(S without c) - L(S with c)] over coalitions S that keep each unit with probability 1/2
    (Wang & Jia, arXiv 2205.15466).

    The Banzhaf value; among semivalues, its ranking is the most robust to noise. Every evaluation
    serves every unit (the paper's maximum sample reuse). Coalitions come in pairs, S and its
    complement, one with the unit and one without; the paper draws all of them independently.
    """

    def _rows(self, players: int) -> tuple[int, int]:
        return self.masks, 0

    @torch.no_grad()
    def _of_pair(self, game: Game, keep: torch.Tensor) -> torch.Tensor:
        loss, complement_loss = game.losses(torch.stack([keep, ~keep])).double()
        return (complement_loss - loss).unsqueeze(1) * torch.where(keep, 1.0, -1.0)
