"""Base class of the criteria: options, checks, data, and the model in eval mode while scoring."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from torch import nn

from pruning_lab.attributions.estimation.reduction import Estimate, Reduction, check_reduction
from pruning_lab.attributions.observation.axes import axis_of
from pruning_lab.attributions.observation.batches import Batches
from pruning_lab.attributions.observation.checks import check_trace, observe, raw_losses
from pruning_lab.attributions.unit_groups import UnitGroups, units_of_module
from pruning_lab.errors import UserError
from pruning_lab.graph.refusals import UntraceableError, untraceable
from pruning_lab.partial_forward.cut import ModelGraph
from pruning_lab.partial_forward.hooked import HookedGraph
from pruning_lab.partial_forward.traced import trace
from pruning_lab.profiling import passes
from pruning_lab.profiling.passes import Passes, Prediction, counted
from pruning_lab.runtime.inputs import Inputs, call, length
from pruning_lab.runtime.model_state import evaluating, state_kept, uncompiled
from pruning_lab.runtime.random_streams import streams_kept


class Progress:
    """Progress listener; the default ignores all events. Subclass it to show progress."""

    def planned(self, index: int, evaluations: int) -> None:
        """Announce ``evaluations`` more evaluations for set number ``index`` of unit groups."""

    def done(self, index: int, evaluations: int) -> None:
        """Report ``evaluations`` completed evaluations for that set."""

    def error(self, index: int, relative: float) -> None:
        """Report the relative error of that set's scores so far."""


class Site(NamedTuple):
    """Where activations are read: node, dimension of the units, groups of the units, module."""

    node: Any
    axis: int
    row: torch.Tensor | None
    module: nn.Module

    def by_unit(self, activation: object) -> torch.Tensor:
        """Reshape an activation to (samples, units, positions); UserError if it has no units."""
        if not isinstance(activation, torch.Tensor) or activation.ndim < 2:
            raise UserError(
                f"{type(self.module).__name__} has no units: its output is not a tensor (samples, "
                "units, ...). Score a Linear, a convolution, or what follows one."
            )
        units = activation.shape[self.axis]
        return activation.movedim(self.axis, 1).reshape(len(activation), units, -1)


class AttributionMetric(ABC):
    """A criterion: scores how much each unit of a layer is worth to the model.

    Units with the lowest scores are removed first.

    Args:
        model: it is scored in eval mode, and left as it was.
        data_generator: an iterable of batches, which can be read several times: ``(x, target)``,
            several inputs with the target last, or dictionaries of the model's named arguments with
            the target as ``"labels"``. All tensors have the samples in their first dimension.
        criterion: the loss function, called as ``criterion(output, target, reduction="none")``.
        device: where the batches are moved to; the model must be there.
        reduction: makes one score per unit out of per-sample scores (samples, units): ``"mean"``,
            ``"mean_abs"`` (of absolute values), ``"sum"``, ``"mean_plus_2_std"`` (the best variant
            of Ancona et al., arXiv 2006.01795; population standard deviation), ``"none"``, or a
            callable.
        **options: of the criterion, by the names in its ``options``.
    """

    evidence: ClassVar[str] = "nothing"
    """Description of what the criterion reads of the model."""

    options: ClassVar[tuple[str, ...]] = ()
    """Names of the options of the constructor and ``run``; class attributes hold the defaults."""

    needs_gradient: ClassVar[bool] = False
    """True if the criterion reads gradients of the model."""

    independent: ClassVar[bool] = False
    """True if scores are independent random draws: one unit's score then counts for its group."""

    def __init__(
        self,
        model: nn.Module,
        data_generator: Iterable[Any],
        criterion: Callable[..., torch.Tensor],
        device: torch.device | str,
        reduction: Reduction = "mean",
        **options: Any,
    ) -> None:
        check_reduction(reduction)
        self.model = model
        self.data_generator = data_generator
        self.criterion = criterion
        self.device = torch.device(device)
        self.batches = Batches(data_generator, self.device)
        self.reduction = reduction
        self._axes: dict[nn.Module, int] = {}
        self._set(options, type(self).__name__)

    def run(
        self, module: nn.Module, find_best_evaluation_module: bool = False, **options: Any
    ) -> np.ndarray:
        """Score the units of ``module``: (units,), or (samples, units) with ``"none"``.

        Activations are read at the module's own output, or with ``find_best_evaluation_module``
        after the BatchNorm and non-linearity that follow it. Raises UserError for a module that
        is not part of the model, never runs, or has no units.
        """
        return self.run_layers([module], find_best_evaluation_module, **options)[0]

    def run_layers(
        self,
        modules: Sequence[nn.Module],
        find_best_evaluation_module: bool = False,
        **options: Any,
    ) -> list[np.ndarray]:
        """Score the units of several modules; ``run``'s result for each of them."""
        unit_groups = [units_of_module(module) for module in modules]
        estimates = self.estimate(unit_groups, find_best_evaluation_module, **options)
        return [estimate.scores for estimate in estimates]

    def estimate(
        self,
        unit_groups: Sequence[UnitGroups],
        find_best_evaluation_module: bool = False,
        progress: Progress | None = None,
        **options: Any,
    ) -> list[Estimate]:
        """Score several sets of unit groups; returns their scores with errors.

        ``units_of_module(module)`` makes the groups that ``run`` scores, ``unit_groups_of(model,
        group)`` those of coupled layers: units that are scored and removed together.
        """
        metric = self._with(options)
        self._check_known(unit_groups)
        with at_rest(self.model):
            return metric._estimate(
                unit_groups, find_best_evaluation_module, progress or Progress()
            )

    def predict(
        self,
        unit_groups: Sequence[UnitGroups],
        find_best_evaluation_module: bool = False,
        **options: Any,
    ) -> Prediction | None:
        """Predict the passes that ``estimate`` will take; None if the criterion cannot tell.

        Nothing is scored: a few samples are read, and two go through the model.
        """
        metric = self._with(options)
        self._check_known(unit_groups)
        with at_rest(self.model), counted(Passes()):  # _graph then weighs operations
            return metric._predict(unit_groups, find_best_evaluation_module)

    def check(
        self, unit_groups: Sequence[UnitGroups], find_best_evaluation_module: bool = False
    ) -> None:
        """Raise UserError for unit groups that ``estimate`` would refuse; nothing is scored."""
        metric = self._with({})
        with at_rest(self.model):
            metric._check_unit_groups(unit_groups, find_best_evaluation_module)

    def _check_unit_groups(self, unit_groups: Sequence[UnitGroups], after_activation: bool) -> None:  # noqa: B027
        """Raise UserError for unit groups that have no scores."""

    @abstractmethod
    def _estimate(
        self, unit_groups: Sequence[UnitGroups], after_activation: bool, progress: "Progress"
    ) -> list[Estimate]:
        """Return the scores of each set of unit groups."""

    def _predict(
        self, unit_groups: Sequence[UnitGroups], after_activation: bool
    ) -> Prediction | None:
        """Predict the passes that ``_estimate`` will take."""
        return None

    def _check_known(self, unit_groups: Sequence[UnitGroups]) -> None:
        known = set(self.model.modules())
        for module in (module for groups in unit_groups for module in groups.members):
            if module not in known:
                raise UserError(f"This {type(module).__name__} is not part of the model: {module}.")

    def _check_options(self) -> None:  # noqa: B027  (most criteria have none)
        """Raise UserError for impossible values of the criterion's options."""

    def _with(self, options: dict[str, Any]) -> Self:
        """Return a copy of this metric with other values for some of its options."""
        metric = copy.copy(self)
        metric._set(options, f"{type(self).__name__}.run()")
        metric.batches = self.batches.anew()
        return metric

    def _set(self, options: dict[str, Any], who: str) -> None:
        for name in options:
            if name not in self.options:
                allowed = ", ".join(self.options) or "no options"
                raise TypeError(f"{who} takes no {name!r}; it takes {allowed}.")
        vars(self).update(options)
        self._check_options()

    def _sites(
        self, graph: ModelGraph, unit_groups: UnitGroups, after_activation: bool
    ) -> list[Site]:
        """Return the sites where the unit groups' activations are read."""
        if unit_groups.count is None:
            module = unit_groups.first
            return [Site(graph.site(module, after_activation), self._axis(module), None, module)]
        sites = [
            Site(node, self._axis(module), row, module)
            for module, row in unit_groups.members.items()
            for node in graph.sites(module, after_activation)
        ]
        if not sites:
            raise UserError(
                f"{unit_groups.first} and the layers coupled to it never run: nothing to score."
            )
        row = sites[0].row
        if len(sites) == 1 and row is not None and torch.equal(row.cpu(), torch.arange(len(row))):
            return [sites[0]._replace(row=None)]  # permutations through the next layer need this
        return sites

    def _axis(self, module: nn.Module) -> int:
        """Return the dimension of ``module``'s output that holds its units."""
        if module not in self._axes:
            self._axes[module] = axis_of(self.model, module, self.batches.example)
        return self._axes[module]

    def _counts(
        self, graph: ModelGraph, unit_groups: Sequence[UnitGroups], after_activation: bool
    ) -> list[int]:
        """Return the number of groups in each set; the output's width where every unit is one."""
        sites = [self._sites(graph, groups, after_activation)[0] for groups in unit_groups]
        nodes = list(dict.fromkeys(site.node for site in sites))
        with torch.no_grad(), passes.checking():
            _, activations = graph.record(self.batches.example(), nodes)
        read = dict(zip(nodes, activations, strict=True))
        widths = [site.by_unit(read[site.node]).shape[1] for site in sites]
        return [groups.count or width for groups, width in zip(unit_groups, widths, strict=True)]

    def _graph(self, unit_groups: Sequence[UnitGroups] = ()) -> ModelGraph:
        """Return the traced model, or hooks if the trace does not compute what the model does.

        This is checked on a few samples, at the output and at the modules of ``unit_groups``.
        """
        modules = list(dict.fromkeys(module for groups in unit_groups for module in groups.members))
        x, graph = self.batches.first(4), None
        x = x if length(x) > 1 else self.batches.example()
        with passes.checking():
            seen = observe(self.model, x, modules, self.needs_gradient)
            try:
                if not isinstance(x, torch.Tensor):
                    raise untraceable(self.model, "it takes several inputs, or named ones")
                graph = trace(self.model)
                check_trace(self.model, graph, x, modules, seen)
            except UntraceableError as error:
                return HookedGraph(self.model, error, graph)
        if passes.listens():
            graph.weigh(self.batches.example())
        return graph

    def _output(self, inputs: Inputs) -> Any:
        """Return the model's output."""
        passes.forward(length(inputs))
        return call(self.model, inputs)

    def _losses(self, output: Any, target: Inputs) -> torch.Tensor:
        """Return one loss per sample, (N,)."""
        losses = self._raw_losses(output, target)
        return losses.flatten(1).mean(1) if losses.ndim > 1 else losses

    def _raw_losses(self, output: Any, target: Inputs) -> torch.Tensor:
        return raw_losses(self.criterion, output, target)


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode without parameter gradients; restore everything afterwards.

    That includes what its code writes to its modules, and the random streams (a DataLoader shuffles
    by them). Inside, float32 has full precision on GPUs, and compiled code runs uncompiled.
    """
    parameters = list(model.parameters())
    kept = streams_kept({parameter.device for parameter in parameters})
    with ExitStack() as stack, state_kept(model), evaluating(model), uncompiled(), kept:
        for parameter in parameters:
            stack.callback(parameter.requires_grad_, parameter.requires_grad)
            parameter.requires_grad_(False)
        backends: Any = torch.backends
        # by default a GPU rounds the factors of convolutions to TF32's ten bits, which changes the
        # third digit of scores
        for switch in (backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul):
            stack.callback(setattr, switch, "fp32_precision", switch.fp32_precision)
            switch.fp32_precision = "ieee"
        yield
