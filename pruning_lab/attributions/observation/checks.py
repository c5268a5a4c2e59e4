"""Check that samples have losses of their own, and that a trace computes what the model does."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from pruning_lab.attributions.observation.batches import Batch
from pruning_lab.errors import UserError
from pruning_lab.graph.kinds import BatchNorm
from pruning_lab.graph.refusals import check_takes, told, untraceable
from pruning_lab.partial_forward.hooked import recorded
from pruning_lab.partial_forward.parts import gradients
from pruning_lab.partial_forward.traced import Graph
from pruning_lab.profiling import passes
from pruning_lab.runtime.inputs import Inputs, call, copied, length, select, tensors
from pruning_lab.runtime.random_streams import seed_all, streams_kept

ROWS = ([0, 1], [0, 1, 0], [0, 0], [1, 1], [1, 0], [0, 1] * 4)
"""Batches made of two samples: both, three rows, each one twice, both reversed, eight rows."""


def raw_losses(criterion: Callable[..., torch.Tensor], output: Any, target: Inputs) -> torch.Tensor:
    """Return the loss function's values for N samples, (N, ...); UserError for any other shape."""
    try:
        losses = criterion(output, target, reduction="none")
    except TypeError as error:
        if not isinstance(criterion, nn.Module) and "'reduction'" not in str(error):
            raise
        raise UserError(
            f"The criterion {criterion} takes no reduction; it is called as criterion("
            "output, target, reduction='none'), for one loss a sample. Give such a function, "
            "one of torch.nn.functional for example."
        ) from error
    tensor = isinstance(losses, torch.Tensor)
    if not tensor or losses.ndim == 0 or len(losses) != length(target):
        kind = f"shape {tuple(losses.shape)}" if tensor else f"a {type(losses).__name__}"
        raise UserError(
            "criterion(output, target, reduction='none') must give one loss a sample, "
            f"({length(target)}, ...); it gave {kind}."
        )
    return losses


def check_statistics(model: nn.Module) -> None:
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


@torch.no_grad()
@passes.checking()
def check_apart(
    read: Callable[[Inputs], Any],
    pair: Batch,
    losses: Callable[[Any, Inputs], torch.Tensor] | None = None,
) -> None:
    """Raise UserError if a sample's values or losses change with the other samples of its batch.

    The two samples of ``pair`` go in the batches of ROWS through ``read``, which returns what is
    read of the model, and from there, with their targets, through ``losses`` (None for criteria
    without a loss). Random numbers of the model are seeded: the same for batches of equal shape.
    """
    inputs, target = pair
    read_of = [drawn_alike(read, select(inputs, rows)) for rows in ROWS]
    random = not all(map(same, *map(_floats, (read_of[0], drawn_alike(read, inputs, seed=1)))))
    for both, three, *further in zip(*map(_floats, read_of), strict=False):
        dims = [d for d, size in enumerate(both.shape) if three.shape[d] != size]
        if len(dims) > 1:
            raise UserError(
                f"For 2 samples the model gives a tensor {tuple(both.shape)}, for 3 one of "
                f"{tuple(three.shape)}: it compares the samples of a batch, so there are no scores "
                "per sample. Score a model whose output has one row per sample."
            )
        if dims and _mixed([v.movedim(dims[0], 0) for v in (both, three, *further)], random):
            raise UserError(
                "The model's result for a sample depends on the other samples of its batch, so "
                "there are no scores per sample. Look for statistics of the batch, and for layers "
                "whose samples lie in another dimension (batch_first=False)."
            )
    if losses is None:
        return
    for targets in (target, select(target, [0, 0])):  # some losses mix only samples of one class
        losses_of = [
            drawn_alike(losses, o, select(targets, rows))
            for o, rows in zip(read_of, ROWS, strict=True)
        ]
        _check_losses(losses_of, read_of[0], targets, random)


def _check_losses(found: Sequence[torch.Tensor], output: Any, target: Inputs, random: bool) -> None:
    both, three = found[:2]
    shapes = f"output {_shapes(output)}, target {_shapes(target)}"
    advice = "Squeeze the output, or unsqueeze the target, if their shapes differ"
    if both.shape[1:] != three.shape[1:]:
        raise UserError(
            f"The losses of 2 samples have shape {tuple(both.shape)}, those of 3 "
            f"{tuple(three.shape)}: each output is compared with every target ({shapes}). {advice}."
        )
    sizes = [tensor.abs().max().item() for tensor in _floats(output) if tensor.numel()]
    if _mixed(found, random, floor=0.01 * max([1.0, *sizes])):
        raise UserError(
            "A sample's loss depends on the other samples of its batch, so there are no scores per "
            f"sample ({shapes}). {advice}; a loss function with reduction='none' must not average, "
            "weight or pair the samples of a batch."
        )


def _mixed(found: Sequence[torch.Tensor], random: bool, floor: float = 0.0) -> bool:
    """Return True if a row changes with the other rows of its batch.

    Unless the model is ``random``, also if it changes with the number of rows or its position.
    ``found`` is in the order of ROWS. Losses near 0 inherit the rounding errors of their outputs:
    the tolerance is relative to at least ``floor``.
    """
    both, three, first, second, swapped, many = found
    apart = [(both[0], first[0]), (both[1], second[1])]
    if not random:
        apart += [(both[0], three[0]), (both[1], three[1]), (first[0], first[1])]
        apart += [(both[0], swapped[1]), (both[1], swapped[0])]
        apart += [(both[0], many[0]), (both[1], many[-1])]
    scale = max(floor, largest(both))
    return not all(same(one, other, scale) for one, other in apart)


def _floats(value: Any) -> list[torch.Tensor]:
    return [tensor for tensor in tensors_in(value) if tensor.is_floating_point()]


def _shapes(value: Any) -> str:
    return ", ".join(str(tuple(t.shape)) for t in tensors_in(value)) or type(value).__name__


class Observed(NamedTuple):
    """Record of a pass: the output, each module's number of runs, the gradients there if wanted."""

    output: Any
    runs: list[int]
    gradients: list[torch.Tensor]


def observe(model: nn.Module, x: Inputs, modules: Sequence[nn.Module], graded: bool) -> Observed:
    """Record a pass of the model; UserError if a second pass gives another output."""
    runs: list[int] = []

    def record(x: Inputs) -> tuple[Any, list[torch.Tensor]]:
        output, values = recorded(model, x, modules)
        runs.extend(len(values[module]) for module in modules)
        return output, [value for module in modules for value in values[module]]

    check_takes(model, x)
    with torch.no_grad():
        passes.forward(length(x))
        first = drawn_alike(call, model, x)
    try:
        output, at_runs = _with_gradients(record, x, graded)
    except RuntimeError as error:
        if not graded:
            raise
        raise UserError(
            f"torch cannot compute the gradients of {type(model).__name__}: {told(error)}. Choose "
            "a criterion that needs none, leave_one_out for example."
        ) from error
    if not same_output(first, output):
        raise UserError(
            f"{type(model).__name__} gives another output when the same samples go through it "
            "again: its forward changes what it reads later. Create such tensors in each forward."
        )
    return Observed(output, runs, at_runs)


def check_trace(
    model: nn.Module, graph: Graph, x: Inputs, modules: Sequence[nn.Module], seen: Observed
) -> None:
    """Raise UntraceableError unless the traced operations compute what the model was ``seen`` to.

    Compares the output for ``x``, twice, and the runs and the gradients at ``modules``.
    """
    for module, runs in zip(modules, seen.runs, strict=True):
        graph.check_runs(module, runs)
    nodes = [node for module in modules for node in graph.sites(module)]
    try:
        with torch.no_grad():
            passes.forward(length(x))
            first = drawn_alike(graph.module, x)
        output, at_runs = _with_gradients(lambda x: graph.record(x, nodes), x, bool(seen.gradients))
    except Exception as error:  # the user's code may raise anything
        raise untraceable(model, error) from error
    if not same_output(seen.output, first) or not same_output(seen.output, output):
        raise untraceable(
            model,
            "its traced operations give another output: perhaps a tensor is changed in place "
            "under two names, the code depends on the data, or it runs under torch.autocast",
        )
    if not _same_gradients(seen.gradients, at_runs):
        raise untraceable(
            model,
            "its traced operations have another gradient: perhaps a part of the code runs under "
            "torch.no_grad(), which a trace does not see; it sees .detach()",
        )


def _with_gradients(
    record: Callable[[Inputs], tuple[Any, list[torch.Tensor]]], x: Inputs, graded: bool
) -> tuple[Any, list[torch.Tensor]]:
    """Return the output, and if ``graded`` the gradients of a weighted sum of it at the record."""
    with torch.set_grad_enabled(graded):
        output, activations = drawn_alike(record, x)
        if not graded:
            return output, []
        sums = [(tensor * _weights(tensor)).sum().double() for tensor in _floats(output)]
        total = torch.stack(sums).sum() if sums else torch.zeros(())
        return output, gradients(total, activations)


def _weights(like: torch.Tensor) -> torch.Tensor:
    """Return weights without a pattern, the same in every call."""
    return torch.arange(like.numel(), device=like.device).add(1).cos().to(like).view(like.shape)


def drawn_alike(run: Callable[..., Any], *given: Any, seed: int = 0) -> Any:
    """Call ``run`` on copies of the tensors, seeded: some models draw even in eval mode."""
    copies = copied(given)
    with streams_kept([tensor.device for tensor in tensors(copies)]):
        seed_all(seed)
        return run(*copies)


def _same_gradients(some: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> bool:
    """Compare up to rounding, relative to each pair's maximum, or 1e-3 of the overall maximum."""
    scales = [max(largest(one), largest(other)) for one, other in zip(some, others, strict=True)]
    floor = 1e-3 * max(scales, default=0.0)
    pairs = zip(some, others, scales, strict=True)
    return all(same(one, other, max(scale, floor)) for one, other, scale in pairs)


PLAIN = (tuple, list, dict, fx.immutable_collections.immutable_list,
         fx.immutable_collections.immutable_dict)  # fmt: skip


def same_output(one: Any, other: Any) -> bool:
    """Return True if two outputs have the same type and, up to rounding, the same tensors."""
    pairs = list(tensors_in(one)), list(tensors_in(other))
    alike = type(one) is type(other) or all(type(output) in PLAIN for output in (one, other))
    return alike and len(pairs[0]) == len(pairs[1]) and all(map(same, *pairs))


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors of an output, also those in nested containers and objects' attributes."""
    items: Iterable[Any] = ()
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        items = value.values()
    elif isinstance(value, list | tuple):
        items = value
    elif is_dataclass(value) and not isinstance(value, type):
        items = [getattr(value, field.name) for field in fields(value)]
    elif hasattr(value, "__dict__") and not isinstance(value, type | nn.Module):
        items = vars(value).values()
    for item in items:
        yield from tensors_in(item)


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
    eps = torch.finfo(one.dtype).eps
    relative = 1e-9 if one.dtype == torch.float64 else max(1e-3, 16 * eps)
    bound = relative * (scale or largest(one))
    return torch.allclose(one, other, rtol=0, atol=bound, equal_nan=True)


def largest(value: torch.Tensor) -> float:
    """Return the largest magnitude of a finite entry; 0 if there is none."""
    finite = value[value.isfinite()].abs()
    return finite.max().item() if len(finite) else 0.0
