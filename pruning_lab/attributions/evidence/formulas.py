"""Call the formulas of criteria: on copies, and with a check of what they return."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from pruning_lab.errors import UserError


def ask(
    formula: Callable[..., Any], shape: Sequence[int], words: str, *given: torch.Tensor
) -> torch.Tensor:
    """Call ``formula`` on copies of ``given``; UserError unless the result has this ``shape``.

    Copies, because ``given`` serves other criteria, too, or belongs to the model.
    """
    return fitting(formula(*(tensor.clone() for tensor in given)), shape, words, formula)


def fitting(
    found: Any, shape: Sequence[int], words: str, formula: Callable[..., Any]
) -> torch.Tensor:
    """Return scores as floats; UserError unless they are a tensor of real numbers of this shape."""
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
    found = found.detach().clone()  # a formula may later write to its result
    return found if found.is_floating_point() else found.double()
