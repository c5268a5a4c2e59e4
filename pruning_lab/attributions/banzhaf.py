"""What the loss rises by when a unit goes, on average over all coalitions alike."""

import torch

from pruning_lab.attributions.game import Game
from pruning_lab.attributions.paired_masks import PairedMasksMetric


class BanzhafAttributionMetric(PairedMasksMetric):
    """E[L(S without c) - L(S with c)] over coalitions S that keep each unit with probability 1/2.

    The Banzhaf value; of its kind it is the one whose ranks noise changes least (Wang & Jia, arXiv
    2205.15466). Every evaluation is used for every unit, the paper's maximum sample reuse; here
    coalitions come in pairs, S and its complement, of which one has the unit and one has not, while
    the paper draws them all apart.
    """

    def _rows(self, players: int) -> tuple[int, int]:
        return self.masks, 0

    @torch.no_grad()
    def _of_pair(self, game: Game, keep: torch.Tensor) -> torch.Tensor:
        own, complement = game.losses(torch.stack([keep, ~keep])).double()
        return (complement - own).unsqueeze(1) * torch.where(keep, 1.0, -1.0)
