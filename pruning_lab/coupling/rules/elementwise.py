"""Rules of elementwise operations: units that meet in an entry can only be removed together."""

from typing import Any

import torch

from pruning_lab.coupling.call import Call, UnfollowedError
from pruning_lab.coupling.values import Axes, Value

NAMES = """
abs add alpha_dropout atan ceil celu clamp clamp_max clamp_min clip clone contiguous cos detach div
divide double dropout dropout1d dropout2d dropout3d elu eq erf exp expand_as expm1
feature_alpha_dropout float floor ge gelu gt half hardshrink hardsigmoid hardswish hardtanh iadd
imul isub itruediv le leaky_relu log log1p logsigmoid lt masked_fill maximum minimum mish mul
multiply ne neg negative ones_like pos positive pow reciprocal relu relu6 round rrelu rsqrt rsub
selu sigmoid sign silu sin softplus softshrink softsign sqrt square stochastic_depth sub subtract
tanh tanhshrink threshold to true_divide truediv type where zeros_like
"""
"""Names of functions of torch, operators of Python, and methods of tensors."""


def elementwise(call: Call) -> Any:
    """Follow any number of operands, broadcast against each other."""
    result = call.evaluate()
    if not isinstance(result, torch.Tensor):
        raise UnfollowedError(f"its units meet {call}, which cannot be followed")
    return Value(result.to("meta"), joined(call, call.values, result.shape))


def dropout(call: Call) -> Any:
    """Follow elementwise, and record the units: the rate falls with the share of removed units."""
    if call.x.axes:
        seen = torch.cat(list(call.x.axes.values()))
        call.findings.dropouts.setdefault(call.path, seen)
    return elementwise(call)


def joined(call: Call, operands: list[Value], shape: torch.Size) -> Axes:
    """Return the axes of the result when ``operands`` are broadcast to ``shape``.

    Entries that meet are tied. An entry that is broadcast over many is frozen, and so are units
    that meet entries without units.
    """
    axes: Axes = {}
    for dim, size in enumerate(shape):
        from_end = dim - len(shape)
        rows = [value.row(from_end) for value in operands if value.tensor.ndim >= -from_end]
        for row in rows:
            if len(row) < size and row.any():
                call.slots.freeze(row, f"one unit is broadcast over many, in {call}")
        full = [row for row in rows if len(row) == size]
        leading = next((row for row in full if row.any()), None)
        if leading is not None:
            for row in full:
                if row is not leading:
                    call.tie(leading, row)
            axes[dim] = leading
    return axes
