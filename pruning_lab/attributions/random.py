"""Random scores: the baseline that every criterion must beat."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from pruning_lab.attributions.base import AttributionMetric, Progress
from pruning_lab.attributions.players import Players
from pruning_lab.attributions.reduction import Estimate
from pruning_lab.errors import check_seed
from pruning_lab.ledger import Prediction


class RandomAttributionMetric(AttributionMetric):
    """Uniform on [0, 1), independent for every unit: any ranking removes the same expected share
    of every layer.

    Uses no data: the scores are (units,) whatever the reduction. The stream belongs to (seed,
    layer, number of units): the same model gives the same scores, and after a cut the draw is a
    new one. Units that only go together are ranked by one draw: the mean of several would be
    drawn to the middle, and fewer of them would go than of others.
    """

    options: ClassVar[tuple[str, ...]] = ("seed",)
    independent: ClassVar[bool] = True
    seed: int = 0

    def _check_options(self) -> None:
        check_seed("seed", self.seed)

    def _estimate(
        self, players: Sequence[Players], behind: bool, progress: Progress
    ) -> list[Estimate]:
        place = {module: number for number, module in enumerate(self.model.modules())}
        found = []
        counts = self._counts(self._graph(players), players, behind=False)
        for each, count in zip(players, counts, strict=True):
            stream = np.random.default_rng([self.seed, place[each.first], count])
            found.append(Estimate(stream.random(count)))
        return found

    def _predict(self, players: Sequence[Players], behind: bool) -> Prediction:
        return Prediction()
