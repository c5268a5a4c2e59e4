"""Random scores: the baseline that every criterion must beat."""

from collections.abc import Sequence

import numpy as np

from pruning_lab.attributions.base import AttributionMetric, Progress
from pruning_lab.attributions.estimation.reduction import Estimate
from pruning_lab.attributions.unit_groups import UnitGroups
from pruning_lab.errors import check_seed
from pruning_lab.profiling.passes import Prediction


class RandomAttributionMetric(AttributionMetric):
    """Uniform on [0, 1), independent for every unit: any ranking removes the same expected share
    of every layer.

    Uses no data: the scores are (units,) whatever the reduction. The stream is seeded by (seed,
    layer, number of units): the same model gets the same scores, a layer that has lost units new
    ones. Coupled units share a single draw: the mean of several would be closer to the middle, and
    fewer of them would be removed than of other units.
    """

    options = ("seed",)
    independent = True
    seed: int = 0

    def _check_options(self) -> None:
        check_seed("seed", self.seed)

    def _estimate(
        self, unit_groups: Sequence[UnitGroups], after_activation: bool, progress: Progress
    ) -> list[Estimate]:
        numbers = {module: number for number, module in enumerate(self.model.modules())}
        estimates = []
        counts = self._counts(self._graph(unit_groups), unit_groups, after_activation=False)
        for groups, count in zip(unit_groups, counts, strict=True):
            stream = np.random.default_rng([self.seed, numbers[groups.first], count])
            estimates.append(Estimate(stream.random(count)))
        return estimates

    def _predict(self, unit_groups: Sequence[UnitGroups], after_activation: bool) -> Prediction:
        return Prediction()
