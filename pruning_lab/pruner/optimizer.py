"""Which optimizers survive a cut, and how their state follows it."""

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
"""Every weight is updated from its own gradient and state: slicing both is exact."""


def check_optimizer(optimizer: optim.Optimizer | None) -> None:
    """UserError for an optimizer whose state cannot be cut together with the weights."""
    if optimizer is not None and not isinstance(optimizer, ELEMENTWISE):
        names = ", ".join(sorted(kind.__name__ for kind in ELEMENTWISE))
        raise UserError(
            f"{type(optimizer).__name__} cannot be handled: its state does not belong to single "
            f"weights. Use one of {names}, or make a new optimizer after pruning."
        )


def slice_state(
    optimizer: optim.Optimizer | None,
    parameter: torch.nn.Parameter,
    shape: torch.Size,
    axis: int,
    keep: torch.Tensor,
) -> None:
    """Slice every state tensor of the ``shape`` that ``parameter`` had, along the same axis."""
    if optimizer is None:
        return
    state = optimizer.state.get(parameter, {})
    for key, value in state.items():
        if isinstance(value, torch.Tensor) and value.shape == shape:
            state[key] = value.index_select(axis, keep.to(value.device))
