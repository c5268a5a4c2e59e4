"""What a criterion's formula feeds on: weights, activations and gradients, losses under masks."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pruning_lab.attributions.base import AttributionMetric, at_rest, by_unit
from pruning_lab.attributions.reduction import Reducer
from pruning_lab.errors import UserError
from pruning_lab.graph import unit_axis
from pruning_lab.graph.cut import Cut, State
from pruning_lab.graph.hooked import HookedCut

Evidence = list[tuple[torch.Tensor, torch.Tensor]]
"""At every site the activation and the gradient of each sample's own loss."""

ROWS = 128
"""How many masked samples go through the model at once: enough to fill a processor."""


class ActivationMetric(AttributionMetric):
    """A criterion on the activation at a site, and on the loss's gradient there.

    One pass over the data scores all layers; parameter gradients are never computed.
    """

    needs_gradient: ClassVar[bool] = True

    memory: int = 128 * 2**20
    """About how many bytes the activations of a pass may take; larger batches go in parts."""

    @abstractmethod
    def formula(self, activation: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Per-sample scores (N, units) from activation and gradient, each (N, units, positions).

        The gradient is that of each sample's own loss; without ``needs_gradient`` it is not
        computed and the activation stands in its place.
        """

    def _scores(
        self,
        modules: Sequence[nn.Module],
        behind: bool,
        on_progress: Callable[[int, int], None],
    ) -> list[np.ndarray]:
        return _one_pass([self], modules, behind)[0]

    def _at_once(self, graph: Any, sites: list[Any], x: torch.Tensor) -> int:
        """How many samples fit into ``memory``, by what the first of them takes."""
        with torch.set_grad_enabled(self.needs_gradient), _Bytes(self.model) as made:
            graph.record(x[:1], sites)
        both_ways = 2 if self.needs_gradient else 1
        return max(1, self.memory // (both_ways * max(1, made.count)))

    def _evidence(self, graph: Any, sites: list[Any], x: torch.Tensor, target: Any) -> Evidence:
        """Activation and gradient at every site."""
        with torch.set_grad_enabled(self.needs_gradient):
            output, activations = graph.record(x, sites)
            if not self.needs_gradient:
                return list(zip(activations, activations, strict=True))
            loss = self._losses(output, target).sum()
            gradients = torch.autograd.grad(
                loss, activations, allow_unused=True, materialize_grads=True
            )
        return [(a.detach(), g) for a, g in zip(activations, gradients, strict=True)]


def run_together(
    metrics: Sequence[ActivationMetric],
    modules: Sequence[nn.Module],
    find_best_evaluation_module: bool = False,
) -> list[list[np.ndarray]]:
    """What ``run_layers`` gives for each of the metrics, by one pass over the data for all.

    Raises UserError unless the metrics have the same model, data and loss.
    """
    first = metrics[0]
    for name in ("model", "data_generator", "criterion"):
        if any(getattr(other, name) is not getattr(first, name) for other in metrics):
            raise UserError(f"Metrics that run together must have the same {name}.")
    with at_rest(first.model):
        return _one_pass(metrics, modules, find_best_evaluation_module)


def _one_pass(
    metrics: Sequence[ActivationMetric], modules: Sequence[nn.Module], behind: bool
) -> list[list[np.ndarray]]:
    """Metric by metric the reduced scores of each module."""
    leading = next((metric for metric in metrics if metric.needs_gradient), metrics[0])
    graph = leading._graph()
    sites: list[Any] = [graph.site(module, behind) for module in modules]
    reducers = [[Reducer(metric.reduction) for _ in modules] for metric in metrics]
    at_once = 0
    for batch, targets in leading._batches():
        at_once = at_once or leading._at_once(graph, sites, batch)
        for x, target in zip(batch.split(at_once), targets.split(at_once), strict=True):
            evidence = leading._evidence(graph, sites, x, target)
            for place, module in enumerate(modules):
                a, g = (by_unit(each, unit_axis(module), module) for each in evidence[place])
                for metric, reducer in zip(metrics, reducers, strict=True):
                    reducer[place].add(metric.formula(a, g))
    return [[each.result() for each in reducer] for reducer in reducers]


class _Bytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are made while it is active."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.count = 0
        there = (*model.parameters(), *model.buffers())
        self._seen = {tensor.untyped_storage().data_ptr() for tensor in there}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self._seen:
                    self._seen.add(storage.data_ptr())
                    self.count += storage.nbytes()
        return result


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

    def _scores(
        self,
        modules: Sequence[nn.Module],
        behind: bool,
        on_progress: Callable[[int, int], None],
    ) -> list[np.ndarray]:
        graph = self._graph()
        found = []
        for index, module in enumerate(modules):
            site: Any = graph.site(module, behind)
            cut, reducer, seen = graph.cut(site), Reducer(self.reduction), 0
            with torch.no_grad():
                for x, target in self._batches(self.samples):
                    reducer.add(self._score(cut, module, x, target, seen))
                    seen += len(x)
                    on_progress(index, len(x))
            found.append(reducer.result())
        return found

    def _score(
        self, cut: Cut | HookedCut, module: nn.Module, x: torch.Tensor, target: Any, first: int
    ) -> torch.Tensor:
        state, axis = cut.before(x), unit_axis(module)
        units = by_unit(state.activation, axis, module).shape[1]

        def losses(keep: torch.Tensor) -> torch.Tensor:
            return self._masked_losses(cut, state, axis, target, keep)

        return self._score_batch(losses, first, (len(x), units))

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
