"""How the loss falls with a unit's mask, on average over random coalitions."""

from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from pruning_lab.attributions.base import Criterion
from pruning_lab.attributions.game import Game
from pruning_lab.attributions.masks import MaskMetric, OneRoundMetric
from pruning_lab.attributions.reduction import Reduction
from pruning_lab.errors import UserError, check_count, check_seed


class OwenGradientAttributionMetric(OneRoundMetric):
    """-E[dL/dm_u] at random masks m of the units: keep each with a probability drawn from [0, 1].

    The Shapley value is the expected rise of the loss when the unit goes, over such masks: the
    multilinear extension (Owen, 1972; sampled by Okhrati & Lipani, arXiv 2010.12082). Here the rise
    is replaced by the derivative, so that one pass forward and back serves all units of a layer: a
    biased value that ranks units nearly alike. ``masks`` a sample, in antithetic pairs (a mask and
    its opposite), from a stream that belongs to (seed, number of the sample, number of the pair).
    """

    evidence: ClassVar[str] = "gradients under masks"
    options: ClassVar[tuple[str, ...]] = ("masks", *MaskMetric.options)

    def __init__(
        self,
        model: nn.Module,
        data_generator: Iterable[Any],
        criterion: Criterion,
        device: torch.device | str,
        reduction: Reduction = "mean",
        masks: int = 8,
        samples: int | None = None,
        seed: int = 0,
        precision: str = "fp32",
    ) -> None:
        super().__init__(model, data_generator, criterion, device, reduction, samples, precision)
        self.masks = masks
        self.seed = seed
        self._check_options()

    def _check_options(self) -> None:
        super()._check_options()
        check_seed("seed", self.seed)
        check_count("masks", self.masks, 4)
        if self.masks % 2:
            raise UserError(f"masks={self.masks} is not possible; they come in pairs.")

    def _rows(self, players: int) -> tuple[int, int]:
        return self.masks, self.masks

    def _draws(self) -> int:
        return self.masks // 2

    def _score(self, game: Game, first: int) -> tuple[torch.Tensor, torch.Tensor]:
        each = torch.stack(
            [self._falls(game, first, pair) for pair in range(self._draws())]
        ).double()
        return each.mean(0), each.var(0) / len(each)

    def _falls(self, game: Game, first: int, pair: int) -> torch.Tensor:
        """The mean of a mask and its opposite, (samples, players)."""
        streams = [
            np.random.default_rng([self.seed, number, pair])
            for number in range(first, first + game.samples)
        ]
        kept = np.stack([each.random(game.players) < each.random() for each in streams])
        keep = torch.as_tensor(kept, device=self.device)
        masks = torch.stack([keep, ~keep]).to(game.dtype)
        return -game.gradients(masks).mean(0)
