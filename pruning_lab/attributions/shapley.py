"""What a unit is worth on average over all orders in which the layer can lose its units."""

from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from pruning_lab.attributions.base import Criterion
from pruning_lab.attributions.game import Game
from pruning_lab.attributions.masks import MaskMetric
from pruning_lab.attributions.reduction import Reduction
from pruning_lab.errors import UserError, check_count


class ShapleyAttributionMetric(MaskMetric):
    """Sampled Shapley value of every unit: mean over orders of L(S without u) - L(S).

    The units of the layer are put to 0 one after another in a random order; a unit's score is the
    mean rise of the loss at its turn (Ancona et al., arXiv 2006.01795). Per sample the scores sum
    to L(no unit) - L(all units).

    Every sample has ``sv_samples`` orders of its own, in antithetic pairs (an order and its
    reverse; an odd number is rounded up), where TorchPruner shares its orders between all samples:
    independent ones average the error away. ``permutations`` (orders, units) are used for every
    sample instead, as removal orders. ``samples`` limits how many samples are read. The random
    stream belongs to (seed, number of the sample, number of the pair): batch sizes do not matter.
    Cost: ``sv_samples`` x units evaluations a sample of the part of the model behind the site.
    """

    options: ClassVar[tuple[str, ...]] = ("sv_samples", "permutations", *MaskMetric.options)

    def __init__(
        self,
        model: nn.Module,
        data_generator: Iterable[Any],
        criterion: Criterion,
        device: torch.device | str,
        reduction: Reduction = "mean",
        sv_samples: int = 5,
        samples: int | None = None,
        seed: int = 0,
        permutations: Any = None,
        precision: str = "fp32",
    ) -> None:
        super().__init__(model, data_generator, criterion, device, reduction, samples, precision)
        self.sv_samples = sv_samples
        self.seed = seed
        self.permutations = permutations
        self._check_options()

    def _check_options(self) -> None:
        super()._check_options()
        check_count("sv_samples", self.sv_samples)

    @torch.no_grad()
    def _score(self, game: Game, first: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self.permutations is not None:
            orders = self._given(game)
            walks = [game.walk(order.expand(game.samples, -1), ways=1)[0] for order in orders]
            return torch.stack(walks).mean(0), None
        pairs = range((self.sv_samples + 1) // 2)
        drawn = [game.walk(self._orders(game, first, pair)).mean(0) for pair in pairs]
        each = torch.stack(drawn)
        return each.mean(0), each.var(0) / len(each) if len(each) > 1 else None

    def _orders(self, game: Game, first: int, pair: int) -> torch.Tensor:
        """One order for each sample of a batch, (samples, players)."""
        streams = (
            np.random.default_rng([self.seed, number, pair])
            for number in range(first, first + game.samples)
        )
        orders = np.stack([stream.permutation(game.players) for stream in streams])
        return torch.as_tensor(orders, device=self.device)

    def _given(self, game: Game) -> torch.Tensor:
        """The orders that were asked for, (orders, players)."""
        given = torch.as_tensor(np.asarray(self.permutations), device=self.device)
        every = torch.arange(game.players, device=self.device)
        if given.ndim != 2 or not torch.equal(given.sort(1).values, every.expand(len(given), -1)):
            raise UserError(
                f"permutations must be orders of {game.players} units, (orders, {game.players}); "
                f"these have shape {tuple(given.shape)} or repeat a unit."
            )
        return given
