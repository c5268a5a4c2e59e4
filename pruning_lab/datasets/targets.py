"""Kinds of targets: what a sample of a data set has beside its input."""

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from pruning_lab.errors import UserError

TARGETS = {
    "class": "one class a sample",
    "labels": "0 or 1 for each of several labels",
    "numbers": "one or more numbers a sample",
}
"""The kinds, and how they are called in messages."""


def checked_target(who: str, value: Any, kind: str, width: int) -> Any:
    """Return the target of a sample as plain numbers; UserError unless it is one of its kind.

    Args:
        who: the sample, for messages.
        value: its target.
        kind: one of ``TARGETS``.
        width: the number of classes, of labels or of numbers.
    """
    if kind == "class":
        return _class_number(who, value, width)
    wanted = "0 or 1 for each label" if kind == "labels" else "finite float32 numbers"
    tensor = isinstance(value, torch.Tensor) and value.shape == (width,)
    if kind == "labels":
        fits = tensor and bool(((value == 0) | (value == 1)).all())
    else:
        fits = tensor and value.dtype == torch.float32 and bool(value.isfinite().all())
    if not fits:
        raise UserError(
            f"{who}: the target is {value!r:.60}; it must be a tensor of shape ({width},) with "
            f"{wanted}."
        )
    return value.tolist()


def _class_number(who: str, label: Any, num_classes: int) -> int:
    number, allowed = python_number(label), f"the {num_classes} classes are 0 to {num_classes - 1}"
    if not isinstance(number, int):
        raise UserError(
            f"{who}: the class is {described(label)}; {allowed}, each an int or an integer tensor "
            "without dimensions. Number words, take argmax() of one-hot vectors, int(y) of others."
        )
    if not 0 <= number < num_classes:
        raise UserError(f"{who} has class {number}; {allowed}. Number them so, or leave it out.")
    return number


def python_number(value: Any) -> Any:
    """Return an integer of any library as Python's int; anything else as it is."""
    try:
        return value if getattr(value, "ndim", 0) else int(operator.index(value))
    except (TypeError, ValueError, RuntimeError):
        return value


def described(value: Any) -> str:
    """Describe a value for a message."""
    kind = type(value)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    if isinstance(value, torch.Tensor | np.ndarray):
        return f"a {name} of {value.dtype} and shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a {name} of {', '.join(map(str, value))}"
    if isinstance(value, tuple | list):
        return f"a {name} of {len(value)}"
    return f"{value!r:.60}" if isinstance(value, str | int | float) else f"a {name}"
