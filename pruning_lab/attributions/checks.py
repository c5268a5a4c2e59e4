"""Whether a model can be scored, and whether what is run in its place computes the same."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import fx, nn

from pruning_lab import ledger
from pruning_lab.errors import UserError
from pruning_lab.graph import Graph
from pruning_lab.graph.hooked import recorded
from pruning_lab.graph.kinds import BatchNorm
from pruning_lab.graph.parts import gradients
from pruning_lab.graph.refusals import check_takes_one_tensor, told, untraceable
from pruning_lab.random_streams import seed_all, streams_kept


def check_samples_apart(model: nn.Module) -> None:
    """UserError for a model in which a sample's loss depends on the others of its batch."""
    for name, module in model.named_modules():
        if isinstance(module, BatchNorm) and module.running_mean is None:
            raise UserError(
                f"'{name}' takes its statistics from the batch (track_running_stats=False): a "
                "sample's loss depends on the others, so there are no scores by sample."
            )


def check_graded(loss: torch.Tensor) -> None:
    """UserError for a loss from which no gradient leads back into the model."""
    if not loss.requires_grad:
        raise UserError(
            "No gradient leads from the loss back to the units: the model's forward, or the loss, "
            "runs under torch.no_grad() or torch.inference_mode(), or goes through detach, item or "
            "numpy. Take that out, or choose a criterion that needs no gradient, leave_one_out for "
            "example."
        )


@dataclass(frozen=True)
class Observed:
    """What a pass gives: the output, what is at each module in each of its runs, the gradients.

    The gradients are those of a weighted sum of the output; there are none where none were wanted.
    """

    output: Any
    runs: list[list[torch.Tensor]]
    gradients: list[torch.Tensor]


def observe(
    model: nn.Module, x: torch.Tensor, modules: Sequence[nn.Module], graded: bool
) -> Observed:
    """How the model computes; UserError where it does so in another way the next time."""
    check_takes_one_tensor(model)
    with torch.no_grad():
        ledger.forward(len(x))
        first = _drawn_alike(model, x)
    try:
        found = _observed(partial(_at_modules, model, modules), x, graded)
    except RuntimeError as error:
        if not graded:
            raise
        raise UserError(
            f"torch cannot compute the gradients of {type(model).__name__}: {told(error)}. Choose "
            "a criterion that needs none, leave_one_out for example."
        ) from error
    if not same_output(first, found.output):
        raise UserError(
            f"{type(model).__name__} gives another output when the same samples go through it "
            "again: its forward changes what it reads later. Let forward make such tensors anew."
        )
    return found


def check_trace(
    model: nn.Module, graph: Graph, x: torch.Tensor, modules: Sequence[nn.Module], seen: Observed
) -> None:
    """UntraceableError unless the traced operations compute as the model was ``seen`` to.

    Twice the same output for ``x``, and once the same values and gradients at ``modules``.
    """
    for module, runs in zip(modules, seen.runs, strict=True):
        graph.check_runs(module, len(runs))
    try:
        with torch.no_grad():
            ledger.forward(len(x))
            first = _drawn_alike(graph.module, x)
        found = _observed(partial(_at_nodes, graph, modules), x, bool(seen.gradients))
    except Exception as error:  # the user's code: anything may be raised
        raise untraceable(model, error) from error
    if not same_output(seen.output, first) or not same_output(seen.output, found.output):
        raise untraceable(
            model,
            "its operations, traced, give another output: a tensor is changed in place under two "
            "names, perhaps, the code depends on the data, or it runs under torch.autocast",
        )
    if not _same_gradients(seen.gradients, found.gradients):
        raise untraceable(
            model,
            "its operations, traced, have another gradient: a part of the code runs under "
            "torch.no_grad(), perhaps, where .detach() would be seen",
        )


Recording = Callable[[torch.Tensor], tuple[Any, list[list[torch.Tensor]]]]


def _at_modules(model: nn.Module, modules: Sequence[nn.Module], x: torch.Tensor) -> Any:
    output, runs = recorded(model, x, modules)
    return output, [runs[module] for module in modules]


def _at_nodes(graph: Graph, modules: Sequence[nn.Module], x: torch.Tensor) -> Any:
    nodes = [graph.sites(module) for module in modules]
    output, activations = graph.record(x, [node for own in nodes for node in own])
    values = iter(activations)
    return output, [[next(values) for _ in own] for own in nodes]


def _observed(record: Recording, x: torch.Tensor, graded: bool) -> Observed:
    with torch.set_grad_enabled(graded):
        output, runs = _drawn_alike(record, x)
        if not graded:
            return Observed(output, runs, [])
        sums = [(t * _weights(t)).sum() for t in tensors_in(output) if t.is_floating_point()]
        whole = torch.stack([each.double() for each in sums]).sum() if sums else torch.zeros(())
        return Observed(output, runs, gradients(whole, [each for own in runs for each in own]))


def _weights(like: torch.Tensor) -> torch.Tensor:
    """Weights without a pattern, the same every time."""
    return torch.arange(like.numel(), device=like.device).add(1).cos().to(like).view(like.shape)


def _drawn_alike(run: Callable[[torch.Tensor], Any], x: torch.Tensor) -> Any:
    """What a copy of ``x`` gives; some models draw at random even in eval mode."""
    with streams_kept([x.device]):
        seed_all(0)
        return run(x.clone())


def _same_gradients(some: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> bool:
    """Up to rounding, which goes with the largest of a place, or with a share of that of all."""
    largest = [max(_largest(one), _largest(other)) for one, other in zip(some, others, strict=True)]
    floor = 1e-3 * max(largest, default=0.0)
    pairs = zip(some, others, largest, strict=True)
    return all(same(one, other, max(scale, floor)) for one, other, scale in pairs)


def same_output(one: Any, other: Any) -> bool:
    """Whether two outputs are of one kind and have the same tensors up to rounding."""
    pairs = list(tensors_in(one)), list(tensors_in(other))
    alike = type(one) is type(other) or all(type(each) in PLAIN for each in (one, other))
    return alike and len(pairs[0]) == len(pairs[1]) and all(map(same, *pairs))


PLAIN = (tuple, list, dict, fx.immutable_collections.immutable_list,
         fx.immutable_collections.immutable_dict)  # fmt: skip


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """The tensors of an output: of containers within each other, and of objects with attributes."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from (t for each in value.values() for t in tensors_in(each))
    elif isinstance(value, list | tuple):
        yield from (t for each in value for t in tensors_in(each))
    elif hasattr(value, "__dict__") and not isinstance(value, type | nn.Module):
        yield from (t for each in vars(value).values() for t in tensors_in(each))


def same(one: Any, other: Any, scale: float | None = None) -> bool:
    """Whether two values are the same up to rounding.

    That goes with ``scale``, or else with the largest entry of a tensor.
    """
    if not isinstance(one, torch.Tensor) or not isinstance(other, torch.Tensor):
        return type(one) is type(other)
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.is_floating_point():
        return torch.equal(one, other)
    largest = scale or _largest(one)
    eps = torch.finfo(one.dtype).eps
    bound = largest * (1e-9 if one.dtype == torch.float64 else max(1e-3, 16 * eps))
    return torch.allclose(one, other, rtol=0, atol=bound, equal_nan=True)


def _largest(value: torch.Tensor) -> float:
    finite = value[value.isfinite()].abs()
    return finite.max().item() if len(finite) else 0.0
