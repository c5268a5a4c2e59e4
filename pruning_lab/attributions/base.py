"""What every criterion shares: the data, the model at rest, and one number a unit at the end."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from pruning_lab.attributions.players import Players, units_of_module
from pruning_lab.attributions.reduction import Estimate, Reduction, check_reduction
from pruning_lab.errors import UserError
from pruning_lab.graph import Graph, HookedGraph, UntraceableError, trace, unit_axis
from pruning_lab.graph.cut import two_and_three
from pruning_lab.graph.kinds import BatchNorm
from pruning_lab.graph.trace import untraceable
from pruning_lab.modes import evaluating

Criterion = Callable[..., torch.Tensor]


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
    scores (samples, units): ``"mean"``, ``"sum"``, ``"mean_plus_2_std"`` (the best variant of
    Ancona et al., arXiv 2006.01795; the population's standard deviation), ``"none"``, or a
    callable. Higher scores mean: keep.
    """

    options: ClassVar[tuple[str, ...]] = ()
    """Constructor arguments of the criterion that may also be given to ``run``."""

    independent: ClassVar[bool] = False
    """Scores are draws of their own: of units that only go together one stands for all."""

    _stream: torch.Tensor | None = None
    """The state of the loader's own generator when the batches were first read."""

    def __init__(
        self,
        model: nn.Module,
        data_generator: Iterable[Any],
        criterion: Criterion,
        device: torch.device | str,
        reduction: Reduction = "mean",
    ) -> None:
        check_reduction(reduction)
        self.model = model
        self.data_generator = data_generator
        self.criterion = criterion
        self.device = torch.device(device)
        self.reduction = reduction

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
        known = set(self.model.modules())
        for module in (module for each in players for module in each.members):
            if module not in known:
                raise UserError(f"This {type(module).__name__} is not part of the model: {module}.")
        with at_rest(self.model):
            return metric._estimate(players, find_best_evaluation_module, progress or Progress())

    @abstractmethod
    def _estimate(
        self, players: Sequence[Players], behind: bool, progress: "Progress"
    ) -> list[Estimate]:
        """The scores of each set of players."""

    def _check_samples_apart(self) -> None:
        """UserError for a model in which a sample's loss depends on the others of its batch."""
        for name, module in self.model.named_modules():
            if isinstance(module, BatchNorm) and module.running_mean is None:
                raise UserError(
                    f"'{name}' takes its statistics from the batch (track_running_stats=False): a "
                    "sample's loss depends on the others, so there are no scores by sample."
                )

    def _check_options(self) -> None:  # noqa: B027  (most criteria have none)
        """Refuse impossible values of the criterion's own options."""

    def _with(self, options: dict[str, Any]) -> "AttributionMetric":
        """This metric with other values for some of its options."""
        unknown = [name for name in options if name not in self.options]
        if unknown:
            raise TypeError(
                f"{type(self).__name__}.run() takes no {unknown[0]!r}; it takes "
                f"{', '.join(self.options) or 'no options'}."
            )
        metric = copy.copy(self)
        vars(metric).update(options)
        metric._check_options()
        return metric

    def _sites(self, graph: Any, players: Players, behind: bool) -> list[Site]:
        """Where the players' activations are read."""
        if not players.joint:
            return [
                Site(
                    graph.site(players.first, behind), unit_axis(players.first), None, players.first
                )
            ]
        found = [
            Site(node, unit_axis(module), row, module)
            for module, row in players.members.items()
            for node in graph.sites(module, behind)
        ]
        if not found:
            raise UserError(f"{players.first} and what goes with it never run: nothing to score.")
        return found

    def _counts(self, graph: Any, players: Sequence[Players], behind: bool) -> list[int]:
        """How many players there are in each set; of a module's units its output tells."""
        sites = [self._sites(graph, each, behind)[0] for each in players]
        nodes = list(dict.fromkeys(site.node for site in sites))
        with torch.no_grad():
            _, activations = graph.record(self._example(), nodes)
        read = dict(zip(nodes, activations, strict=True))
        widths = [by_unit(read[site.node], site.axis, site.module).shape[1] for site in sites]
        return [each.count or width for each, width in zip(players, widths, strict=True)]

    def _graph(self) -> Graph | HookedGraph:
        """The model's operations, where the trace computes what the model does; else its hooks."""
        try:
            graph = trace(self.model)
            self._check(graph)
        except UntraceableError as error:
            return HookedGraph(self.model, error)
        return graph

    @torch.no_grad()
    def _check(self, graph: Graph) -> None:
        """UntraceableError unless the operations give the model's output."""
        x, _ = next(self._batches(limit=8))
        x, outputs = x if len(x) > 1 else two_and_three(x)[0], []
        for run in (self.model, graph.module):
            torch.manual_seed(0)  # some models draw even in eval mode
            try:
                outputs.append(tree_leaves(run(x.clone())))
            except Exception as error:  # the user's code: anything may be raised
                if run is self.model:
                    raise
                raise untraceable(self.model, error) from error
        own, traced = outputs
        if len(own) != len(traced) or not all(map(same, own, traced)):
            raise untraceable(
                self.model,
                "its operations, traced, give another output: a tensor is changed in place under "
                "two names, perhaps, or the code depends on the data",
            )

    def _example(self) -> torch.Tensor:
        """The first sample, twice: of a single one, code may drop the dimension."""
        x, _ = next(self._batches(limit=1))
        return two_and_three(x)[0]

    def _batches(self, limit: int | None = None) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The batches on the device, the first ``limit`` samples of them, as copies.

        A DataLoader that shuffles gives the same order whenever they are read.
        """
        torch.default_generator.manual_seed(0)
        own = getattr(self.data_generator, "generator", None)
        if isinstance(own, torch.Generator):
            if self._stream is None:
                self._stream = own.get_state()
            own.set_state(self._stream)
        batches, seen = iter(self.data_generator), 0
        if batches is self.data_generator:
            raise UserError(
                "The data_generator can be read only once, but it is read several times. Give a "
                "list of batches or a DataLoader."
            )
        for batch in batches:
            x, target = checked_batch(batch)
            left = len(x) if limit is None else limit - seen
            if left <= 0:
                return
            seen += len(x)
            yield x[:left].to(self.device, copy=True), target[:left].to(self.device)
        if seen == 0:
            raise UserError("The data_generator yielded no batch: nothing to score on.")

    def _losses(self, output: Any, target: torch.Tensor) -> torch.Tensor:
        """One loss a sample: (N,)."""
        try:
            losses = self.criterion(output, target, reduction="none")
        except TypeError as error:
            if not isinstance(self.criterion, nn.Module):
                raise
            raise UserError(
                f"The criterion {self.criterion} takes no reduction; it is called as criterion("
                "output, target, reduction='none'). Give the function, F.cross_entropy for example."
            ) from error
        if losses.ndim == 0 or len(losses) != len(target):
            raise UserError(
                "criterion(output, target, reduction='none') must give one loss a sample, "
                f"({len(target)}, ...); it gave shape {tuple(losses.shape)}."
            )
        return losses.flatten(1).mean(1) if losses.ndim > 1 else losses


def same(one: Any, other: Any, scale: float | None = None) -> bool:
    """Whether two tensors are the same up to rounding, which goes with the largest entry."""
    if not isinstance(one, torch.Tensor) or not isinstance(other, torch.Tensor):
        return type(one) is type(other)
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.is_floating_point():
        return torch.equal(one, other)
    finite = one[one.isfinite()].abs()
    largest = scale or (finite.max().item() if len(finite) else 0.0)
    eps = torch.finfo(one.dtype).eps
    bound = largest * (1e-9 if one.dtype == torch.float64 else max(1e-3, 16 * eps))
    return torch.allclose(one, other, rtol=0, atol=bound, equal_nan=True)


def checked_batch(batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The samples and targets of a batch; UserError for one of another kind."""
    pair = isinstance(batch, tuple | list) and len(batch) == 2
    if not pair or not all(isinstance(each, torch.Tensor) for each in batch):
        kind = f"{type(batch).__name__} of {len(batch)}" if hasattr(batch, "__len__") else batch
        raise UserError(f"Batches must be pairs of tensors (x, target); there is a {kind}.")
    return batch[0], batch[1]


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

    Also torch's random state, which a shuffling DataLoader draws from.
    """
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    devices = {parameter.device for parameter in wanted if parameter.is_cuda}
    try:
        for parameter in wanted:
            parameter.requires_grad_(False)
        streams = torch.random.fork_rng(devices=[device.index for device in devices])
        with evaluating(model), streams:
            yield
    finally:
        for parameter, requires_grad in wanted.items():
            parameter.requires_grad_(requires_grad)
