"""What a criterion's formula feeds on: weights, activations and gradients, losses under masks."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from pruning_lab.attributions.base import AttributionMetric, by_unit
from pruning_lab.graph import unit_axis
from pruning_lab.graph.cut import Cut, State
from pruning_lab.graph.hooked import HookedCut

ROWS = 128
"""How many masked samples go through the model at once: enough to fill a processor."""


class ActivationMetric(AttributionMetric):
    """A criterion on the activation at a site, and on the loss's gradient there.

    One pass over the data scores all layers; parameter gradients are never computed.
    """

    needs_gradient: ClassVar[bool] = True

    @abstractmethod
    def formula(self, activation: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Per-sample scores (N, units) from activation and gradient, each (N, units, positions).

        The gradient is that of each sample's own loss; without ``needs_gradient`` it is not
        computed and the activation stands in its place.
        """

    def _per_sample(
        self,
        modules: Sequence[nn.Module],
        behind: bool,
        on_progress: Callable[[int, int], None],
    ) -> list[np.ndarray]:
        graph = self._graph()
        sites: list[Any] = [graph.site(module, behind) for module in modules]
        found: list[list[np.ndarray]] = [[] for _ in modules]
        for x, target in self._batches():
            with torch.set_grad_enabled(self.needs_gradient):
                output, activations = graph.record(x, sites)
                if self.needs_gradient:
                    loss = self._losses(output, target).sum()
                    gradients = torch.autograd.grad(
                        loss, activations, allow_unused=True, materialize_grads=True
                    )
                else:
                    gradients = tuple(activations)
            pairs = zip(activations, gradients, strict=True)
            for module, scores, (activation, gradient) in zip(modules, found, pairs, strict=True):
                axis = unit_axis(module)
                score = self.formula(
                    by_unit(activation, axis, module).detach(), by_unit(gradient, axis, module)
                )
                scores.append(score.cpu().double().numpy())
        return [np.concatenate(scores) for scores in found]


class MaskMetric(AttributionMetric):
    """A criterion on the loss when some units of a layer are at 0."""

    samples: int | None = None
    """How many samples are used, from the first on; None: all that the generator yields."""

    @abstractmethod
    def _score_batch(
        self, losses: Callable[[torch.Tensor], torch.Tensor], first: int, shape: tuple[int, int]
    ) -> torch.Tensor:
        """Per-sample scores (N, units) for a batch whose first sample is number ``first``.

        ``losses(keep)`` gives the losses (masks, N) under ``keep`` (masks, N, units), where False
        puts a unit of a sample to 0. ``shape`` is (N, units).
        """

    def _per_sample(
        self,
        modules: Sequence[nn.Module],
        behind: bool,
        on_progress: Callable[[int, int], None],
    ) -> list[np.ndarray]:
        graph = self._graph()
        found = []
        for index, module in enumerate(modules):
            site: Any = graph.site(module, behind)
            cut = graph.cut(site)
            scores: list[np.ndarray] = []
            with torch.no_grad():
                for x, target in self._batches(self.samples):
                    scores.append(self._score(cut, module, x, target, sum(map(len, scores))))
                    on_progress(index, len(x))
            found.append(np.concatenate(scores))
        return found

    def _score(
        self, cut: Cut | HookedCut, module: nn.Module, x: torch.Tensor, target: Any, first: int
    ) -> np.ndarray:
        state, axis = cut.before(x), unit_axis(module)
        units = by_unit(state.activation, axis, module).shape[1]

        def losses(keep: torch.Tensor) -> torch.Tensor:
            return self._masked_losses(cut, state, axis, target, keep)

        return self._score_batch(losses, first, (len(x), units)).double().cpu().numpy()

    def _masked_losses(
        self, cut: Cut | HookedCut, state: State, axis: int, target: Any, keep: torch.Tensor
    ) -> torch.Tensor:
        """The losses (masks, N) under ``keep`` (masks, N, units), several masks at a time."""
        activation = state.activation
        at_once = max(1, ROWS // len(activation)) if cut.stackable(state) else 1
        shape = [len(activation), *[1] * (activation.ndim - 1)]
        shape[axis] = activation.shape[axis]
        found = []
        for masks in keep.split(at_once):
            copies = len(masks)
            masked = activation.unsqueeze(0) * masks.view(copies, *shape)
            output = cut.after(state, masked.flatten(0, 1))
            repeated = target.repeat(copies, *[1] * (target.ndim - 1))
            found.append(self._losses(output, repeated).view(copies, len(activation)))
        return torch.cat(found)
