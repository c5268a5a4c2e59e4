"""Optimizers that can be used across pruning, and slicing of their state."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import optim

from pruning_lab.errors import UserError

ELEMENTWISE: tuple[type[optim.Optimizer], ...] = (
    optim.ASGD,
    optim.Adadelta,
    optim.Adagrad,
    optim.Adam,
    optim.Adamax,
    optim.AdamW,
    optim.NAdam,
    optim.RAdam,
    optim.RMSprop,
    optim.Rprop,
    optim.SGD,
)
"""Optimizers that update each weight from its own gradient and state: slicing both is exact."""

REASONS = {
    "Adafactor": "it keeps means over rows and columns, and scales a step by its whole tensor",
    "LBFGS": "its history and its step length are those of all weights together",
    "Muon": "it orthogonalises a whole matrix, so removed units shape the steps of the others",
    "SparseAdam": "it takes no dense gradients, and layers with removable units have no others",
}
"""Class name -> why it is refused. By name: older versions of torch lack some of these classes."""


def check_optimizer(optimizer: optim.Optimizer | None) -> None:
    """Raise UserError unless slicing leaves the next steps of the remaining weights the same."""
    obstacle = None if optimizer is None else _obstacle(optimizer)
    if obstacle is not None:
        names = ", ".join(sorted(kind.__name__ for kind in ELEMENTWISE))
        raise UserError(
            f"{type(optimizer).__name__} cannot be handled: {obstacle}. Use torch's {names}, or "
            "prune without an optimizer and make a new one after pruning."
        )


def slice_state(
    optimizer: optim.Optimizer | None,
    parameter: torch.nn.Parameter,
    shape: torch.Size,
    selected: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    """Apply ``selected`` to each state tensor that has the old ``shape`` of ``parameter``."""
    state = {} if optimizer is None else optimizer.state.get(parameter, {})
    for key, value in state.items():
        if isinstance(value, torch.Tensor) and value.shape == shape:
            state[key] = selected(value)


def _obstacle(optimizer: optim.Optimizer) -> str | None:
    """Return the reason why a step after pruning would differ, or None."""
    ancestors = type(optimizer).__mro__
    kind = next((base for base in ancestors if base in ELEMENTWISE), None)
    if kind is None:
        known = (REASONS[base.__name__] for base in ancestors if base.__name__ in REASONS)
        return next(known, "it is not known to update every weight from its own gradient alone")
    if not _updates_like(optimizer, kind):
        return f"it updates the weights in another way than {kind.__name__}, which may mix them"
    if any(group.get("differentiable") for group in optimizer.param_groups):
        return "with differentiable=True its state is part of a graph, which slicing would cut"
    for parameter in (weight for group in optimizer.param_groups for weight in group["params"]):
        for key, value in optimizer.state.get(parameter, {}).items():
            if not _follows(value, parameter):
                tensor = isinstance(value, torch.Tensor)
                actual = tuple(value.shape) if tensor else type(value).__name__
                return (
                    f"its state '{key}' is neither a number nor shaped like its parameter: "
                    f"{actual} instead of {tuple(parameter.shape)}"
                )
    return None


def _updates_like(optimizer: optim.Optimizer, kind: type) -> bool:
    """Return whether neither a subclass nor an assignment replaced the update of ``kind``.

    torch itself wraps ``step``, in the class for its hooks and in the object for schedulers.
    """
    same_step = inspect.unwrap(optimizer.step) is inspect.unwrap(kind.step)  # type: ignore[attr-defined]
    return same_step and type(optimizer)._init_group is kind._init_group  # type: ignore[attr-defined]


def _follows(value: Any, parameter: torch.Tensor) -> bool:
    """Return whether a state entry stays right if tensors of the parameter's shape are sliced."""
    if isinstance(value, torch.Tensor):
        return value.numel() == 1 or value.shape == parameter.shape
    return value is None or isinstance(value, int | float)
