"""Check that a model can be scored, and that its trace computes the same as the model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import fx, nn

from pruning_lab.errors import UserError
from pruning_lab.graph.kinds import BatchNorm
from pruning_lab.graph.parts import gradients
from pruning_lab.graph.refusals import check_takes, told, untraceable
from pruning_lab.partial_forward.hooked import recorded
from pruning_lab.partial_forward.traced import Graph
from pruning_lab.profiling import passes
from pruning_lab.runtime.inputs import Inputs, call, copied, length, tensors
from pruning_lab.runtime.random_streams import seed_all, streams_kept


def check_samples_apart(model: nn.Module) -> None:
    """Raise UserError for a BatchNorm that takes its statistics from the batch in eval mode."""
    for name, module in model.named_modules():
        if isinstance(module, BatchNorm) and module.running_mean is None:
            raise UserError(
                f"'{name}' takes its statistics from the batch (track_running_stats=False): a "
                "sample's loss depends on the others, so there are no scores per sample."
            )


def check_graded(loss: torch.Tensor) -> None:
    """Raise UserError for a loss that has no gradient with respect to the units."""
    if not loss.requires_grad:
        raise UserError(
            "No gradient leads from the loss back to the units: the model's forward, or the loss, "
            "runs under torch.no_grad() or torch.inference_mode(), or goes through detach, item or "
            "numpy. Take that out, or choose a criterion that needs no gradient, leave_one_out for "
            "example."
        )


@dataclass(frozen=True)
class Observed:
    """Record of a pass: the output, the values at each module in each of its runs, the gradients.

    The gradients are those of a weighted sum of the output; empty if none were wanted.
    """

    output: Any
    runs: list[list[torch.Tensor]]
    gradients: list[torch.Tensor]


def observe(model: nn.Module, x: Inputs, modules: Sequence[nn.Module], graded: bool) -> Observed:
    """Record a pass of the model; UserError if a second pass gives another output."""
    check_takes(model, x)
    with torch.no_grad():
        passes.forward(length(x))
        first = _drawn_alike(partial(call, model), x)
    try:
        observed = _observed(partial(_at_modules, model, modules), x, graded)
    except RuntimeError as error:
        if not graded:
            raise
        raise UserError(
            f"torch cannot compute the gradients of {type(model).__name__}: {told(error)}. Choose "
            "a criterion that needs none, leave_one_out for example."
        ) from error
    if not same_output(first, observed.output):
        raise UserError(
            f"{type(model).__name__} gives another output when the same samples go through it "
            "again: its forward changes what it reads later. Create such tensors in each forward."
        )
    return observed


def check_trace(
    model: nn.Module, graph: Graph, x: Inputs, modules: Sequence[nn.Module], seen: Observed
) -> None:
    """Raise UntraceableError unless the traced operations compute what the model was ``seen`` to.

    Compares the output for ``x``, twice, and the runs and the gradients at ``modules``.
    """
    for module, runs in zip(modules, seen.runs, strict=True):
        graph.check_runs(module, len(runs))
    try:
        with torch.no_grad():
            passes.forward(length(x))
            first = _drawn_alike(graph.module, x)
        traced = _observed(partial(_at_nodes, graph, modules), x, bool(seen.gradients))
    except Exception as error:  # the user's code may raise anything
        raise untraceable(model, error) from error
    if not same_output(seen.output, first) or not same_output(seen.output, traced.output):
        raise untraceable(
            model,
            "its traced operations give another output: perhaps a tensor is changed in place "
            "under two names, the code depends on the data, or it runs under torch.autocast",
        )
    if not _same_gradients(seen.gradients, traced.gradients):
        raise untraceable(
            model,
            "its traced operations have another gradient: perhaps a part of the code runs under "
            "torch.no_grad(), which a trace does not see; it sees .detach()",
        )


Recording = Callable[[Inputs], tuple[Any, list[list[torch.Tensor]]]]


def _at_modules(model: nn.Module, modules: Sequence[nn.Module], x: Inputs) -> Any:
    output, runs = recorded(model, x, modules)
    return output, [runs[module] for module in modules]


def _at_nodes(graph: Graph, modules: Sequence[nn.Module], x: Inputs) -> Any:
    nodes = [graph.sites(module) for module in modules]
    output, activations = graph.record(x, [node for runs in nodes for node in runs])
    values = iter(activations)
    return output, [[next(values) for _ in runs] for runs in nodes]


def _observed(record: Recording, x: Inputs, graded: bool) -> Observed:
    with torch.set_grad_enabled(graded):
        output, runs = _drawn_alike(record, x)
        if not graded:
            return Observed(output, runs, [])
        sums = [(t * _weights(t)).sum() for t in tensors_in(output) if t.is_floating_point()]
        total = torch.stack([value.double() for value in sums]).sum() if sums else torch.zeros(())
        return Observed(output, runs, gradients(total, [t for values in runs for t in values]))


def _weights(like: torch.Tensor) -> torch.Tensor:
    """Return weights without a pattern, the same in every call."""
    return torch.arange(like.numel(), device=like.device).add(1).cos().to(like).view(like.shape)


def _drawn_alike(run: Callable[[Inputs], Any], x: Inputs) -> Any:
    """Call ``run`` on a copy of ``x``, seeded: some models draw at random even in eval mode."""
    with streams_kept([tensor.device for tensor in tensors(x)]):
        seed_all(0)
        return run(copied(x))


def _same_gradients(some: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> bool:
    """Compare up to rounding, relative to each pair's maximum, or 1e-3 of the overall maximum."""
    largest = [max(_largest(one), _largest(other)) for one, other in zip(some, others, strict=True)]
    floor = 1e-3 * max(largest, default=0.0)
    pairs = zip(some, others, largest, strict=True)
    return all(same(one, other, max(scale, floor)) for one, other, scale in pairs)


def same_output(one: Any, other: Any) -> bool:
    """Return True if two outputs have the same type and, up to rounding, the same tensors."""
    pairs = list(tensors_in(one)), list(tensors_in(other))
    alike = type(one) is type(other) or all(type(output) in PLAIN for output in (one, other))
    return alike and len(pairs[0]) == len(pairs[1]) and all(map(same, *pairs))


PLAIN = (tuple, list, dict, fx.immutable_collections.immutable_list,
         fx.immutable_collections.immutable_dict)  # fmt: skip


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors of an output, also those in nested containers and objects' attributes."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from (t for item in value.values() for t in tensors_in(item))
    elif isinstance(value, list | tuple):
        yield from (t for item in value for t in tensors_in(item))
    elif hasattr(value, "__dict__") and not isinstance(value, type | nn.Module):
        yield from (t for item in vars(value).values() for t in tensors_in(item))


def same(one: Any, other: Any, scale: float | None = None) -> bool:
    """Return True if two values are the same up to rounding; only types count if one is no tensor.

    The tolerance is relative to ``scale``, by default the largest entry of ``one``.
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
