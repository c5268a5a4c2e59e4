"""Call the loss function sample by sample."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pruning_lab.errors import UserError
from pruning_lab.runtime.inputs import Inputs, length

Criterion = Callable[..., torch.Tensor]


def raw_losses(criterion: Criterion, output: Any, target: Inputs) -> torch.Tensor:
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
