"""Operations entry by entry: the units that meet at an entry only go together."""

from typing import Any

import torch

from pruning_lab.graph.call import Call, UnfollowedError
from pruning_lab.graph.slots import FIXED
from pruning_lab.graph.values import Axes, Value

NAMES = """
abs add alpha_dropout atan ceil celu clamp clamp_max clamp_min clip clone contiguous cos detach div
divide double dropout dropout1d dropout2d dropout3d elu eq erf exp expand_as expm1
feature_alpha_dropout float floor ge gelu gt half hardshrink hardsigmoid hardswish hardtanh iadd
imul isub itruediv le leaky_relu log log1p logsigmoid lt masked_fill maximum minimum mish mul
multiply ne neg negative ones_like pos positive pow reciprocal relu relu6 round rrelu rsqrt rsub
selu sigmoid sign silu sin softplus softshrink softsign sqrt square stochastic_depth sub subtract
tanh tanhshrink threshold to true_divide truediv type where zeros_like
"""
"""Functions of torch, operators of Python, methods of tensors."""


def elementwise(call: Call) -> Any:
    """Any number of operands, broadcast against each other."""
    result = call.evaluate()
    if not isinstance(result, torch.Tensor):
        raise UnfollowedError(f"its units meet {call}, which cannot be followed")
    return Value(result.to("meta"), joined(call, call.values, result.shape))


def dropout(call: Call) -> Any:
    """Entry by entry, and the rate falls with the share of units that went."""
    seen = [call.x.axes[dim] for dim in call.x.axes]
    if seen:
        call.findings.dropouts.setdefault(call.path, torch.cat(seen))
    return elementwise(call)


def joined(call: Call, operands: list[Value], shape: torch.Size) -> Axes:
    """The axes of what becomes of ``operands`` when they are broadcast to ``shape``.

    Entries that meet go together. One entry that is broadcast over many cannot go, nor can units
    that meet something without units.
    """
    axes: Axes = {}
    for dim, size in enumerate(shape):
        rows = [row for each in operands if (row := _row(each, dim - len(shape))) is not None]
        for row in rows:
            if len(row) < size and row.any():
                call.slots.freeze(row, f"one unit meets many, in {call}")
        full = [row for row in rows if len(row) == size]
        leading = next((row for row in full if row.any()), None)
        if leading is not None:
            for row in full:
                if row is not leading:
                    call.tie(leading, row)
            axes[dim] = leading
    return axes


def _row(value: Value, dim: int) -> torch.Tensor | None:
    """The numbers along a dimension counted from the end; None where the value has none."""
    if -dim > len(value.shape):
        return None
    dim += len(value.shape)
    return value.axes.get(dim, torch.full((value.shape[dim],), FIXED))
