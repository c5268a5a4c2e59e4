"""What a unit is worth on average over all orders in which the layer can lose its units."""

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from pruning_lab.attributions.base import Criterion
from pruning_lab.attributions.evidence import ROWS, MaskMetric
from pruning_lab.attributions.reduction import Reduction
from pruning_lab.errors import UserError, check_count


class ShapleyAttributionMetric(MaskMetric):
    """Sampled Shapley value of every unit: mean over orders of L(S without u) - L(S).

    The units of the layer are put to 0 one after another in a random order; a unit's score is the
    mean rise of the loss at its turn (Ancona et al., arXiv 2006.01795). Per sample the scores sum
    to L(no unit) - L(all units).

    Every sample has ``sv_samples`` orders of its own, in antithetic pairs (an order and its
    reverse; an odd one stays alone), where TorchPruner shares its orders between all samples:
    independent ones average the error away. ``permutations`` (orders, units) are used for every
    sample instead, as removal orders. ``samples`` limits how many samples are read. The random
    stream belongs to (seed, number of the sample): batch sizes do not matter. Cost: ``sv_samples``
    x (units + 1) evaluations a sample of the part of the model behind the site.
    """

    options: ClassVar[tuple[str, ...]] = ("sv_samples", "permutations", "samples")

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
    ) -> None:
        super().__init__(model, data_generator, criterion, device, reduction)
        self.sv_samples = sv_samples
        self.samples = samples
        self.seed = seed
        self.permutations = permutations
        self._check_options()

    def _check_options(self) -> None:
        check_count("sv_samples", self.sv_samples)
        if self.samples is not None:
            check_count("samples", self.samples)

    def _score_batch(
        self, losses: Callable[[torch.Tensor], torch.Tensor], first: int, shape: tuple[int, int]
    ) -> torch.Tensor:
        orders = self._orders(first, *shape)
        rises = torch.zeros(shape, dtype=torch.float64, device=self.device)
        steps = torch.arange(shape[1] + 1, device=self.device)
        for order in orders.unbind(1):
            turn = order.argsort(1)[None]  # when each unit goes
            # A few masks at a time: those of all steps would be (units + 1, N, units).
            some = steps[:, None, None].split(ROWS)
            path = torch.cat([losses(turn >= step) for step in some])  # (units + 1, N)
            rises.scatter_add_(1, order, path.double().diff(dim=0).T)
        return rises / orders.shape[1]

    def _orders(self, first: int, samples: int, units: int) -> torch.Tensor:
        """The orders of removal: (samples, orders, units)."""
        if self.permutations is not None:
            given = torch.as_tensor(np.asarray(self.permutations), device=self.device)
            every = torch.arange(units, device=self.device)
            if given.ndim != 2 or not torch.equal(
                given.sort(1).values, every.expand(len(given), units)
            ):
                raise UserError(
                    f"permutations must be orders of {units} units, (orders, {units}); "
                    f"these have shape {tuple(given.shape)} or repeat a unit."
                )
            return given.expand(samples, *given.shape)
        orders = [self._antithetic(number, units) for number in range(first, first + samples)]
        return torch.as_tensor(np.stack(orders), device=self.device)

    def _antithetic(self, number: int, units: int) -> np.ndarray:
        """``sv_samples`` orders for one sample: pairs of an order and its reverse."""
        stream = np.random.default_rng([self.seed, number])
        drawn = [stream.permutation(units) for _ in range((self.sv_samples + 1) // 2)]
        pairs = [order for forward in drawn for order in (forward, forward[::-1])]
        return np.stack(pairs[: self.sv_samples])
