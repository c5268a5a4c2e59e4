"""Step at which a unit is removed so that the next layer's output changes least."""

from collections.abc import Sequence

import torch

from pruning_lab.attributions.base import Progress
from pruning_lab.attributions.estimation.reduction import Estimate, finite
from pruning_lab.attributions.evidence.masks import MaskMetric
from pruning_lab.attributions.unit_groups import UnitGroups
from pruning_lab.errors import UserError
from pruning_lab.profiling.passes import Prediction
from pruning_lab.runtime import distributed


class ThiNetAttributionMetric(MaskMetric):
    """Step, from 0 on, at which the unit is removed when each step removes the unit that keeps the
    squared change of the next layer's output least (ThiNet, Luo et al., arXiv 1707.06342).

    A unit's contribution is the output of the next layer, a convolution or Linear, from this unit
    alone, without bias and BatchNorm. The paper reads random positions of random channels; here all
    are read. Its least-squares scaling of the remaining weights is left to fine-tuning. It is not a
    mean over samples: the scores are (units,) whatever the reduction, and not comparable across
    layers. Raises UserError where no single layer sums over the units, as for coupled units.
    """

    evidence = "the next layer's inputs and weights"

    def _check_unit_groups(self, unit_groups: Sequence[UnitGroups], after_activation: bool) -> None:
        parts = self._parts(unit_groups, after_activation)
        for layer, part in zip(unit_groups, parts, strict=True):
            if part.entered is None:
                raise self._refusal(layer)

    def _predict(self, unit_groups: Sequence[UnitGroups], after_activation: bool) -> Prediction:
        forward = 0.0
        for part in self._parts(unit_groups, after_activation):
            layer, _ = part.entered or (0.0, 0.0)
            forward += part.before + 3 * layer  # with all units, with none, and unit by unit
        return Prediction(self.batches.count(self.samples) * forward, at_most=True)

    @torch.no_grad()
    def _estimate(
        self, unit_groups: Sequence[UnitGroups], after_activation: bool, progress: Progress
    ) -> list[Estimate]:
        graph, counts = self._opened(unit_groups, after_activation)
        estimates = []
        for index, (layer, count) in enumerate(zip(unit_groups, counts, strict=True)):
            progress.planned(index, self.batches.available(self.samples))
            total = torch.zeros(count, count, dtype=torch.float64, device=self.device)
            at_once = max(1, self.memory // (8 * count**2))
            for game, part in self._games(graph, layer, after_activation, at_once):
                products = game.gram()
                if products is None:
                    raise self._refusal(layer)
                total += distributed.gathered(products, part.samples).sum(0)
                progress.done(index, part.samples)
            estimates.append(Estimate(turns(finite(total)).cpu().numpy()))
        return estimates

    def _refusal(self, unit_groups: UnitGroups) -> UserError:
        names = {module: name for name, module in self.model.named_modules()}
        return UserError(
            f"The units of '{names[unit_groups.first]}' do not enter one layer that sums over "
            "them, so thinet cannot score them. Choose another criterion."
        )


def turns(products: torch.Tensor) -> torch.Tensor:
    """Removal step of each unit, (units,), by inner products of contributions (units, units)."""
    squares = products.diagonal()
    change, overlaps = products.new_zeros(()), products.new_zeros(len(products))
    steps = torch.full_like(overlaps, -1)
    for step in range(len(products)):
        changes = torch.where(steps < 0, change + 2 * overlaps + squares, torch.inf)
        unit = changes.argmin()
        change = changes[unit]
        overlaps = overlaps + products[unit]  # with the sum of the removed contributions
        steps[unit] = step
    return steps
