"""In which order units can go so that the next layer misses them least."""

from collections.abc import Sequence
from typing import ClassVar

import torch

from pruning_lab import ranks
from pruning_lab.attributions.base import Progress
from pruning_lab.attributions.masks import MaskMetric
from pruning_lab.attributions.players import Players
from pruning_lab.attributions.reduction import Estimate, finite
from pruning_lab.errors import UserError
from pruning_lab.ledger import Prediction


class ThiNetAttributionMetric(MaskMetric):
    """The turn, from 0 on, at which the unit goes when always the one goes that keeps the sum of
    squares of what the next layer lacks least (ThiNet, Luo et al., arXiv 1707.06342).

    What a unit brings to the next layer, a convolution or Linear, is that layer's output from it
    alone, without bias and BatchNorm. The paper reads some positions of some channels at random;
    here all are read. Its least-squares scaling of the weights that stay is left to fine-tuning. It
    is no mean over samples: the scores are (units,) whatever the reduction, and say nothing across
    layers. Raises UserError where no single layer sums over the units, for units that only go
    together, for example.
    """

    evidence: ClassVar[str] = "the next layer's inputs and weights"

    def _check_players(self, players: Sequence[Players], behind: bool) -> None:
        for each, part in zip(players, self._parts(players, behind), strict=True):
            if part.entered is None:
                raise self._refusal(each)

    def _predict(self, players: Sequence[Players], behind: bool) -> Prediction:
        forward = 0.0
        for part in self._parts(players, behind):
            layer, _ = part.entered or (0.0, 0.0)
            forward += part.before + 3 * layer  # whole, without units, and unit by unit
        return Prediction(self.batches.count(self.samples) * forward, at_most=True)

    @torch.no_grad()
    def _estimate(
        self, players: Sequence[Players], behind: bool, progress: Progress
    ) -> list[Estimate]:
        graph, counts = self._opened(players, behind)
        found = []
        for index, (each, count) in enumerate(zip(players, counts, strict=True)):
            progress.planned(index, self.batches.available(self.samples))
            total = torch.zeros(count, count, dtype=torch.float64, device=self.device)
            at_once = max(1, self.memory // (8 * count**2))
            for game, part in self._games(graph, each, behind, at_once):
                products = game.gram()
                if products is None:
                    raise self._refusal(each)
                total += ranks.gathered(products, part.samples).sum(0)
                progress.done(index, part.samples)
            found.append(Estimate(turns(finite(total)).cpu().numpy()))
        return found

    def _refusal(self, players: Players) -> UserError:
        names = {module: name for name, module in self.model.named_modules()}
        return UserError(
            f"The units of '{names[players.first]}' do not go into one layer behind that sums over "
            "them, so thinet cannot score them. Choose another criterion."
        )


def turns(products: torch.Tensor) -> torch.Tensor:
    """When each unit goes, (units,), by the inner products of what they bring, (units, units)."""
    squares = products.diagonal()
    lacking, missed = products.new_zeros(()), products.new_zeros(len(products))
    found = torch.full_like(missed, -1)
    for turn in range(len(products)):
        then = torch.where(found < 0, lacking + 2 * missed + squares, torch.inf)
        unit = then.argmin()
        lacking = then[unit]
        missed = missed + products[unit]  # its products with what is gone
        found[unit] = turn
    return found
