"""What every criterion shares: the data, the model at rest, and one number a unit at the end."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from torch import nn

from pruning_lab import ledger
from pruning_lab.attributions.axes import axis_of
from pruning_lab.attributions.batches import Batches
from pruning_lab.attributions.checks import check_trace, observe
from pruning_lab.attributions.losses import Criterion, raw_losses
from pruning_lab.attributions.players import Players, every_unit, units_of_module
from pruning_lab.attributions.reduction import Estimate, Reduction, check_reduction
from pruning_lab.errors import UserError
from pruning_lab.graph import Graph, HookedGraph, UntraceableError, trace
from pruning_lab.ledger import Passes, Prediction, counted
from pruning_lab.modes import evaluating, state_kept, uncompiled
from pruning_lab.random_streams import streams_kept


class Progress:
    """Is told of the work of a criterion that takes its time; does nothing, for others to do."""

    def planned(self, index: int, evaluations: int) -> None:
        """So many more evaluations will score the players ``index``."""

    def done(self, index: int, evaluations: int) -> None:
        """So many evaluations were made."""

    def error(self, index: int, relative: float) -> None:
        """The relative error of the players' scores so far."""


class Site(NamedTuple):
    """A place where the activations of players' units are read."""

    node: Any
    axis: int
    row: torch.Tensor | None
    module: nn.Module


class AttributionMetric(ABC):
    """A criterion: how much is each unit of a layer worth to the model?

    ``criterion(output, target, reduction="none")`` is the model's loss, ``data_generator`` any
    iterable of batches ``(x, target)``. ``reduction`` makes one score a unit out of the per-sample
    scores (samples, units): ``"mean"``, ``"mean_abs"`` (of absolute values), ``"sum"``,
    ``"mean_plus_2_std"`` (the best variant of Ancona et al., arXiv 2006.01795; the population's
    standard deviation), ``"none"``, or a callable. Higher scores mean: keep.
    """

    evidence: ClassVar[str] = "nothing"
    """What is read of the model, in words."""

    options: ClassVar[tuple[str, ...]] = ()
    """What may be set of the criterion, by its constructor or by ``run``: attributes of the class,
    which hold the defaults."""

    needs_gradient: ClassVar[bool] = False
    """It reads gradients of the model."""

    independent: ClassVar[bool] = False
    """Scores are draws of their own: of units that only go together one stands for all."""

    def __init__(
        self,
        model: nn.Module,
        data_generator: Iterable[Any],
        criterion: Criterion,
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

        The activation is read at the module's own output, or with ``find_best_evaluation_module``
        behind the BatchNorm and non-linearity that follow it. Raises UserError for a module that
        is not part of the model, never runs, or has no units.
        """
        return self.run_layers([module], find_best_evaluation_module, **options)[0]

    def run_layers(
        self,
        modules: Sequence[nn.Module],
        find_best_evaluation_module: bool = False,
        **options: Any,
    ) -> list[np.ndarray]:
        """The scores of several modules."""
        players = [units_of_module(module) for module in modules]
        found = self.estimate(players, find_best_evaluation_module, **options)
        return [each.scores for each in found]

    def estimate(
        self,
        players: Sequence[Players],
        find_best_evaluation_module: bool = False,
        progress: Progress | None = None,
        **options: Any,
    ) -> list[Estimate]:
        """The scores of several sets of players, with their errors.

        ``units_of_module(module)`` are the players that ``run`` scores; those of
        ``players_of_group(model, group)`` have all units that only go together, in several layers.
        """
        metric = self._with(options)
        self._check_known(players)
        with at_rest(self.model):
            return metric._estimate(players, find_best_evaluation_module, progress or Progress())

    def predict(
        self,
        players: Sequence[Players],
        find_best_evaluation_module: bool = False,
        **options: Any,
    ) -> Prediction | None:
        """How many passes ``estimate`` will take; None where the criterion cannot tell.

        Nothing is scored: a few samples are read, and two go through the model.
        """
        metric = self._with(options)
        self._check_known(players)
        with at_rest(self.model), counted(Passes()):  # for then the graph is weighed
            return metric._predict(players, find_best_evaluation_module)

    def check(self, players: Sequence[Players], find_best_evaluation_module: bool = False) -> None:
        """UserError for players that ``estimate`` would refuse; nothing is scored."""
        metric = self._with({})
        with at_rest(self.model):
            metric._check_players(players, find_best_evaluation_module)

    def _check_players(self, players: Sequence[Players], behind: bool) -> None:  # noqa: B027
        """Refuse players that have no scores."""

    @abstractmethod
    def _estimate(
        self, players: Sequence[Players], behind: bool, progress: "Progress"
    ) -> list[Estimate]:
        """The scores of each set of players."""

    def _predict(self, players: Sequence[Players], behind: bool) -> Prediction | None:
        """The passes that ``_estimate`` will take."""
        return None

    def _check_known(self, players: Sequence[Players]) -> None:
        known = set(self.model.modules())
        for module in (module for each in players for module in each.members):
            if module not in known:
                raise UserError(f"This {type(module).__name__} is not part of the model: {module}.")

    def _check_options(self) -> None:  # noqa: B027  (most criteria have none)
        """Refuse impossible values of the criterion's own options."""

    def _with(self, options: dict[str, Any]) -> Self:
        """This metric with other values for some of its options."""
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

    def _sites(self, graph: Any, players: Players, behind: bool) -> list[Site]:
        """Where the players' activations are read."""
        if not players.joint:
            return [
                Site(
                    graph.site(players.first, behind),
                    self._axis(players.first),
                    None,
                    players.first,
                )
            ]
        found = [
            Site(node, self._axis(module), row, module)
            for module, row in players.members.items()
            for node in graph.sites(module, behind)
        ]
        if not found:
            raise UserError(f"{players.first} and what goes with it never run: nothing to score.")
        if len(found) == 1 and every_unit(found[0].row):
            return [found[0]._replace(row=None)]  # which walks by the layer behind ask for
        return found

    def _axis(self, module: nn.Module) -> int:
        """The dimension of ``module``'s output that holds its units."""
        if module not in self._axes:
            self._axes[module] = axis_of(self.model, module, self.batches.example)
        return self._axes[module]

    def _counts(self, graph: Any, players: Sequence[Players], behind: bool) -> list[int]:
        """How many players there are in each set; of a module's units its output tells."""
        sites = [self._sites(graph, each, behind)[0] for each in players]
        nodes = list(dict.fromkeys(site.node for site in sites))
        with torch.no_grad(), ledger.checking():
            _, activations = graph.record(self.batches.example(), nodes)
        read = dict(zip(nodes, activations, strict=True))
        widths = [by_unit(read[site.node], site.axis, site.module).shape[1] for site in sites]
        return [each.count or width for each, width in zip(players, widths, strict=True)]

    def _graph(self, players: Sequence[Players] = ()) -> Graph | HookedGraph:
        """The model's operations, where the trace computes what the model does; else its hooks.

        That is looked at on a few samples, and where the units of ``players`` are read.
        """
        modules = list(dict.fromkeys(module for each in players for module in each.members))
        x, graph = self.batches.first(4), None
        x = x if len(x) > 1 else self.batches.example()
        with ledger.checking():
            seen = observe(self.model, x, modules, self.needs_gradient)
            try:
                graph = trace(self.model)
                check_trace(self.model, graph, x, modules, seen)
            except UntraceableError as error:
                return HookedGraph(self.model, error, graph)
        if ledger.listens():
            graph.weigh(self.batches.example())
        return graph

    def _output(self, x: torch.Tensor) -> Any:
        """The model's output for ``x``."""
        ledger.forward(len(x))
        return self.model(x)

    def _losses(self, output: Any, target: torch.Tensor) -> torch.Tensor:
        """One loss a sample: (N,)."""
        losses = self._raw_losses(output, target)
        return losses.flatten(1).mean(1) if losses.ndim > 1 else losses

    def _raw_losses(self, output: Any, target: torch.Tensor) -> torch.Tensor:
        return raw_losses(self.criterion, output, target)


def by_unit(activation: object, axis: int, module: nn.Module) -> torch.Tensor:
    """Any activation as (samples, units, positions); refuses one that has no units."""
    if not isinstance(activation, torch.Tensor) or activation.ndim < 2:
        raise UserError(
            f"{type(module).__name__} has no units: its output is not a tensor (samples, units, "
            "...). Score a Linear, a convolution, or what follows one."
        )
    return activation.movedim(axis, 1).reshape(len(activation), activation.shape[axis], -1)


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """The model in eval mode without parameter gradients; everything is put back afterwards.

    Also what its code writes to its modules, and the random streams, which a shuffling DataLoader
    draws from. Float32 is float32 inside, and compiled code runs as it was written.
    """
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    devices = {parameter.device for parameter in wanted if parameter.is_cuda}
    try:
        for parameter in wanted:
            parameter.requires_grad_(False)
        kept = streams_kept(devices)
        with state_kept(model), evaluating(model), uncompiled(), kept, _full_precision():
            yield
    finally:
        for parameter, requires_grad in wanted.items():
            parameter.requires_grad_(requires_grad)


@contextmanager
def _full_precision() -> Iterator[None]:
    """Products in float32 as a CPU does them, whatever torch is set to.

    By its default a GPU rounds the factors of convolutions to TF32's ten bits, and scores come out
    other in the third digit.
    """
    backends: Any = torch.backends
    switches = (backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul)
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "ieee"
        yield
    finally:
        for switch, precision in zip(switches, before, strict=True):
            switch.fp32_precision = precision
