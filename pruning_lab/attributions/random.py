"""Random scores: the baseline that every criterion must beat."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from pruning_lab.attributions.base import AttributionMetric, Criterion, by_unit
from pruning_lab.attributions.reduction import Reduction
from pruning_lab.graph import unit_axis


class RandomAttributionMetric(AttributionMetric):
    """Uniform on [0, 1), independent for every unit: any ranking removes the same expected share
    of every layer.

    Uses no data: the scores are (units,) whatever the reduction. The stream belongs to (seed,
    layer, number of units): the same model gives the same scores, and after a cut the draw is a
    new one. Units that only go together are ranked by one draw: the mean of several would be
    drawn to the middle, and fewer of them would go than of others.
    """

    independent: ClassVar[bool] = True

    def __init__(
        self,
        model: nn.Module,
        data_generator: Iterable[Any],
        criterion: Criterion,
        device: torch.device | str,
        reduction: Reduction = "mean",
        seed: int = 0,
    ) -> None:
        super().__init__(model, data_generator, criterion, device, reduction)
        self.seed = seed

    def _scores(
        self,
        modules: Sequence[nn.Module],
        behind: bool,
        on_progress: Callable[[int, int], None],
    ) -> list[np.ndarray]:
        graph = self._graph()
        x, _ = next(self._batches(limit=1))
        sites: list[Any] = [graph.site(module) for module in modules]
        with torch.no_grad():
            _, activations = graph.record(x, sites)
        order = list(self.model.modules())
        scores = []
        for module, activation in zip(modules, activations, strict=True):
            units = by_unit(activation, unit_axis(module), module).shape[1]
            stream = np.random.default_rng([self.seed, order.index(module), units])
            scores.append(stream.random(units))
        return scores
