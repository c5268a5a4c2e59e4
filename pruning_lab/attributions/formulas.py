"""The formulas of criteria: what they are given is theirs, and what they give must fit."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from pruning_lab.errors import UserError


def ask(
    formula: Callable[..., Any], shape: Sequence[int], words: str, *given: torch.Tensor
) -> torch.Tensor:
    """What ``formula`` gives for copies of what is given; UserError unless it has this shape.

    Copies, for what is given serves other criteria, too, or is the model's own.
    """
    return fitting(formula(*(each.clone() for each in given)), shape, words, formula)


def fitting(
    found: Any, shape: Sequence[int], words: str, formula: Callable[..., Any]
) -> torch.Tensor:
    """Scores as a tensor of real numbers; UserError unless they are that, of this shape."""
    name = getattr(formula, "__qualname__", repr(formula))
    if owner := getattr(formula, "__self__", None):
        name = f"{type(owner).__name__}.{formula.__name__}"
    right = isinstance(found, torch.Tensor) and not found.is_complex()
    if not right or found.shape != torch.Size(shape):
        kind = f"a {type(found).__name__}"
        if isinstance(found, torch.Tensor):
            kind = f"a tensor {tuple(found.shape)} of {found.dtype}"
        raise UserError(
            f"{name} must return a tensor of real numbers {words}, here {tuple(shape)}; it "
            f"returned {kind}."
        )
    found = found.detach().clone()  # a formula may write to what it gave before
    return found if found.is_floating_point() else found.double()
