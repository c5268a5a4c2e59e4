"""Check that a sample's output and loss depend on that sample alone."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from pruning_lab import ledger
from pruning_lab.attributions.batches import Batch
from pruning_lab.attributions.checks import same
from pruning_lab.errors import UserError
from pruning_lab.random_streams import seed_all, streams_kept

Read = Callable[[torch.Tensor], Any]
"""x -> what is read of the model: its output, or activations."""

Losses = Callable[[Any, torch.Tensor], torch.Tensor]
"""(output, target) -> losses (N, ...)."""

ROWS = ([0, 1], [0, 1, 0], [0, 0], [1, 1], [1, 0], [0, 1] * 4)
"""Batches made of two samples: both, three, each one twice, both in reverse, and eight."""


@torch.no_grad()
@ledger.checking()
def check_apart(read: Read, pair: Batch, losses: Losses | None = None) -> None:
    """UserError where a sample's values or losses change with the other samples of its batch.

    Two samples are read together, each beside itself, as three and as eight; ``losses`` is None
    for criteria without. Models that draw at random draw alike, as far as the shapes are the same.
    """
    x, target = pair
    read_of = [drawn_alike(read, x[rows]) for rows in ROWS]
    random = not all(map(same, *map(_tensors, (read_of[0], drawn_alike(read, x, seed=1)))))
    for both, three, *own in zip(*map(_tensors, read_of), strict=False):
        dims = [d for d, size in enumerate(both.shape) if three.shape[d] != size]
        if len(dims) > 1:
            raise UserError(
                f"Of 2 samples the model gives a tensor {tuple(both.shape)}, of 3 one of "
                f"{tuple(three.shape)}: it compares the samples of a batch, so there are no scores "
                "by sample. Score a model whose output has one row a sample."
            )
        if dims and _mixed([each.movedim(dims[0], 0) for each in (both, three, *own)], random):
            raise UserError(
                "What the model gives for a sample depends on the other samples of its batch, so "
                "there are no scores by sample. Look for statistics of the batch, and for layers "
                "whose samples lie in another dimension (batch_first=False)."
            )
    if losses is None:
        return
    for targets in (target, target[[0, 0]]):  # some losses mix samples of one class alone
        found = [
            drawn_alike(losses, o, targets[rows]) for o, rows in zip(read_of, ROWS, strict=True)
        ]
        _check_losses(found, read_of[0], targets, random)


def _check_losses(
    found: Sequence[torch.Tensor], output: Any, target: torch.Tensor, random: bool
) -> None:
    both, three = found[:2]
    shapes = f"output {_shapes(output)}, target {tuple(target.shape)}"
    advice = "Squeeze the output, or unsqueeze the target, if their shapes differ"
    if both.shape[1:] != three.shape[1:]:
        raise UserError(
            f"The losses of 2 samples have shape {tuple(both.shape)}, those of 3 "
            f"{tuple(three.shape)}: every output is held against every target ({shapes}). {advice}."
        )
    sizes = [each.abs().max().item() for each in _tensors(output) if each.numel()]
    if _mixed(found, random, floor=0.01 * max([1.0, *sizes])):
        raise UserError(
            "A sample's loss depends on the other samples of its batch, so there are no scores by "
            f"sample ({shapes}). {advice}; a criterion with reduction='none' must not take means, "
            "weights or pairs over the batch."
        )


def _mixed(found: Sequence[torch.Tensor], random: bool, floor: float = 0.0) -> bool:
    """Tell whether a row changes with the other rows of its batch.

    And, but in models that draw, with how many there are, or with their place.
    ``found`` is in the order of ROWS. Losses near 0 are as rough as the outputs they come of:
    ``floor`` is what counts as large.
    """
    both, three, first, second, turned, many = found
    finite = both[both.isfinite()].abs()
    scale = max([floor, *finite.max().reshape(-1).tolist()]) if len(finite) else floor
    apart = [(both[0], first[0]), (both[1], second[1])]
    if not random:
        apart += [(both[0], three[0]), (both[1], three[1]), (first[0], first[1])]
        apart += [(both[0], turned[1]), (both[1], turned[0])]
        apart += [(both[0], many[0]), (both[1], many[-1])]
    return not all(same(one, other, scale) for one, other in apart)


def drawn_alike(run: Callable[..., Any], *given: Any, seed: int = 0) -> Any:
    """Call ``run`` on copies of the tensors, with all random streams seeded."""
    copies = tree_map_only(torch.Tensor, torch.clone, given)
    with streams_kept([each.device for each in tree_leaves(copies) if hasattr(each, "device")]):
        seed_all(seed)
        return run(*copies)


def _tensors(value: Any) -> list[torch.Tensor]:
    leaves = tree_leaves(value)
    return [each for each in leaves if isinstance(each, torch.Tensor) and each.is_floating_point()]


def _shapes(output: Any) -> str:
    return ", ".join(str(tuple(each.shape)) for each in _tensors(output)) or type(output).__name__
