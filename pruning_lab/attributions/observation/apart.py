"""Check that a sample's output and loss depend on that sample alone."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from pruning_lab.attributions.observation.batches import Batch
from pruning_lab.attributions.observation.checks import same, tensors_in
from pruning_lab.errors import UserError
from pruning_lab.profiling import passes
from pruning_lab.runtime.inputs import Inputs, copied, select, tensors
from pruning_lab.runtime.random_streams import seed_all, streams_kept

Read = Callable[[Inputs], Any]
"""Inputs -> what is read of the model: its output or its activations."""

Losses = Callable[[Any, Inputs], torch.Tensor]
"""(output, target) -> losses (N, ...)."""

ROWS = ([0, 1], [0, 1, 0], [0, 0], [1, 1], [1, 0], [0, 1] * 4)
"""Batches made of two samples: both, three rows, each one twice, both reversed, eight rows."""


@torch.no_grad()
@passes.checking()
def check_apart(read: Read, pair: Batch, losses: Losses | None = None) -> None:
    """Raise UserError if a sample's values or losses change with the other samples of its batch.

    The two samples of ``pair`` are read in the batches of ROWS. ``losses``: None for criteria
    without a loss. Random numbers of the model are seeded: the same for batches of equal shape.
    """
    inputs, target = pair
    read_of = [drawn_alike(read, select(inputs, rows)) for rows in ROWS]
    random = not all(map(same, *map(_tensors, (read_of[0], drawn_alike(read, inputs, seed=1)))))
    for both, three, *further in zip(*map(_tensors, read_of), strict=False):
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
    sizes = [tensor.abs().max().item() for tensor in _tensors(output) if tensor.numel()]
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
    finite = both[both.isfinite()].abs()
    scale = max([floor, *finite.max().reshape(-1).tolist()]) if len(finite) else floor
    apart = [(both[0], first[0]), (both[1], second[1])]
    if not random:
        apart += [(both[0], three[0]), (both[1], three[1]), (first[0], first[1])]
        apart += [(both[0], swapped[1]), (both[1], swapped[0])]
        apart += [(both[0], many[0]), (both[1], many[-1])]
    return not all(same(one, other, scale) for one, other in apart)


def drawn_alike(run: Callable[..., Any], *given: Any, seed: int = 0) -> Any:
    """Call ``run`` on copies of the tensors, with all random streams seeded."""
    copies = copied(given)
    with streams_kept([tensor.device for tensor in tensors(copies)]):
        seed_all(seed)
        return run(*copies)


def _tensors(value: Any) -> list[torch.Tensor]:
    return [tensor for tensor in tensors_in(value) if tensor.is_floating_point()]


def _shapes(value: Any) -> str:
    return ", ".join(str(tuple(t.shape)) for t in tensors_in(value)) or type(value).__name__
