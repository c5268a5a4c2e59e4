"""Rules of operations that read units, make new ones, or process each unit by itself."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from pruning_lab.coupling.call import Call, UnfollowedError
from pruning_lab.coupling.rules.elementwise import joined
from pruning_lab.coupling.values import Axes, Value
from pruning_lab.graph.kinds import LAYERS, Convolution, Norm, units_of


def linear(call: Call) -> Any:
    """Tie the last dimension to the weight's columns; the weight's rows are new units."""
    weight, bias = _weights(call, 1)
    if weight.tensor.ndim != 2 or (bias is not None and bias.tensor.ndim != 1):
        raise UnfollowedError(f"its units meet {call}, which cannot be followed")
    x, last = call.x, call.x.tensor.ndim - 1
    call.tie(x.axes.get(last), weight.axes.get(1))
    return call.result(_with(x.axes, last, _units(call, weight.axes.get(0), bias)))


def convolution(call: Call) -> Any:
    """Tie the channels to the weight's inputs; the weight's first dimension holds new units.

    Of a grouped convolution only whole groups can be removed, with their inputs and outputs.
    """
    weight, bias = _weights(call, 1)
    groups, read, made = _groups(call, weight), call.x.axes.get(1), weight.axes.get(0)
    if groups == 1:
        call.tie(read, weight.axes.get(1))
    elif read is None or made is None:
        call.tie(read, made)
    else:
        call.tie_rows(torch.cat([read.view(groups, -1), made.view(groups, -1)], 1))
    return _convolved(call, read, made, bias, groups)


def transposed_convolution(call: Call) -> Any:
    """Do as ``convolution``, with the weight's first two dimensions swapped."""
    weight, bias = _weights(call, 1)
    groups, read, made = _groups(call, weight), weight.axes.get(0), weight.axes.get(1)
    call.tie(call.x.axes.get(1), read)
    if groups > 1:
        if read is None:
            raise UnfollowedError(f"its units meet {call}, whose weight is computed")
        rows = read.view(groups, -1)
        call.tie_rows(rows)
        made = rows[:, 0].repeat_interleave(weight.shape[1])
    return _convolved(call, read, made, bias, groups)


def embedding(call: Call) -> Any:
    """Look up rows; the weight's second dimension holds new units."""
    weight, _ = _weights(call, 1)
    call.freeze(weight, (0,), "which looks them up by number")
    index = call.x
    return call.result(_with(index.axes, index.tensor.ndim, weight.axes.get(1)))


def batch_norm(call: Call) -> Any:
    """Follow each channel by itself (InstanceNorm, too), tied to its statistics and weights."""
    tensors: list[Value | None] = [value for value in call.values if value is not call.x]
    if isinstance(call.target, nn.Module):
        tensors = [call.own(name) for name in ("weight", "bias", "running_mean", "running_var")]
    if isinstance(call.owner, Norm):
        call.follows("num_features", call.x.axes.get(1))
    _tie_channels(call, tensors)
    call.freeze(call.x, [dim for dim in call.x.axes if dim != 1], "whose statistics mix them")
    return call.result(call.x.axes)


def group_norm(call: Call) -> Any:
    """Tie the channels of each group; statistics of a single group use the remaining channels."""
    groups, channels = call.setting(1, "num_groups"), call.x.axes.get(1)
    _tie_channels(call, _weights(call, 2))
    call.freeze(call.x, [dim for dim in call.x.axes if dim > 1], "whose statistics mix them")
    owned = isinstance(call.owner, nn.GroupNorm) and groups == call.owner.num_groups
    if owned:
        call.follows("num_channels", channels)
        per = call.x.shape[1] // groups
        call.follows("num_groups", channels if groups > 1 else None, per)
    if channels is not None and not owned:
        raise UnfollowedError(f"their number is fixed in the code, at {call}")
    if channels is not None and groups > 1:
        call.tie_rows(channels.view(groups, -1))
    return call.result(call.x.axes)


def layer_norm(call: Call) -> Any:
    """Follow the last dimensions; their statistics use the remaining units."""
    shape, weights = call.setting(1, "normalized_shape"), _weights(call, 2)
    first = call.x.tensor.ndim - len(shape)
    owned = isinstance(call.owner, nn.LayerNorm | nn.RMSNorm)
    owned = owned and tuple(shape) == tuple(call.owner.normalized_shape)
    for dim in range(first, call.x.tensor.ndim):
        numbers = call.x.axes.get(dim)
        for weight in weights:
            if weight is not None:
                call.tie(numbers, weight.axes.get(dim - first))
        if owned:
            call.follows("normalized_shape", numbers, index=dim - first)
        elif numbers is not None:
            raise UnfollowedError(f"their number is fixed in the code, at {call}")
    return call.result(call.x.axes)


def prelu(call: Call) -> Any:
    """Follow all units with one shared slope, or one slope per channel."""
    weight, _ = _weights(call, 1)
    if weight.shape.numel() > 1:
        _tie_channels(call, [weight])
    return call.result(call.x.axes)


def matmul(call: Call) -> Any:
    """Multiply rows by columns; tie the two dimensions that are summed over."""
    left, right = call.args[:2]
    if not all(isinstance(value, Value) and value.tensor.ndim > 1 for value in (left, right)):
        raise UnfollowedError(f"its units meet {call}, which cannot be followed")
    result = call.evaluate()
    last = result.ndim - 1
    call.tie(left.axes.get(left.tensor.ndim - 1), right.axes.get(right.tensor.ndim - 2))
    axes = joined(call, [_batch(left), _batch(right)], result.shape[:-2])
    axes = _with(axes, last - 1, left.axes.get(left.tensor.ndim - 2))
    return Value(result, _with(axes, last, right.axes.get(right.tensor.ndim - 1)))


def attention(call: Call) -> Any:
    """softmax(q k') v: tie the heads; freeze the width of the queries, which sets the scale."""
    query, key, value = (call.argument(i, name) for i, name in enumerate(("query", "key", "value")))
    heads = {operand.shape[:-2] for operand in (query, key, value)}
    if len(call.values) != 3 or len(heads) > 1:
        raise UnfollowedError(f"its units meet {call} with a mask or shared heads")
    for operand in (query, key):
        call.freeze(operand, (operand.tensor.ndim - 1, operand.tensor.ndim - 2))
    call.freeze(value, (value.tensor.ndim - 2,))
    result = call.evaluate()
    axes = joined(call, [_batch(operand) for operand in (query, key, value)], result.shape[:-2])
    return Value(result, _with(axes, result.ndim - 1, value.axes.get(value.tensor.ndim - 1)))


def over_space(call: Call) -> Any:
    """Pool, pad or resize each channel by itself; freeze positions."""
    name = str(call).strip("`")
    dims = int(name[-2]) if name[-2:] in ("1d", "2d", "3d", "1D", "2D", "3D") else None
    first = 2 if dims is None else call.x.tensor.ndim - dims
    call.freeze(call.x, range(first, call.x.tensor.ndim), "which mixes positions")
    return call.result({dim: row for dim, row in call.x.axes.items() if dim < first})


def normalised(call: Call) -> Any:
    """softmax and the like: freeze the units that are normalised against each other."""
    dim = call.setting(2 if str(call) == "`normalize`" else 1, "dim")
    call.freeze(call.x, call.x.dims(dim))
    return call.result(call.x.axes)


def reduction(call: Call) -> Any:
    """mean, sum, ...: freeze the units along the reduced dimensions."""
    dim = call.argument(1, "dim", call.kwargs.get("axis"))
    if isinstance(dim, bool) or dim in ((), []):  # std(False) and mean(dim=()) run over everything
        dim = None
    reduced = call.x.dims(dim)
    call.freeze(call.x, reduced)
    remaining = [d for d in range(call.x.tensor.ndim) if d not in reduced]
    result = call.evaluate()
    if not isinstance(result, torch.Tensor):
        raise UnfollowedError(f"its units meet {call}, which cannot be followed")
    places = remaining if result.ndim == call.x.tensor.ndim else range(len(remaining))
    axes = dict(zip(remaining, places, strict=True))
    return Value(result, {axes[d]: row for d, row in call.x.axes.items() if d in axes})


def _weights(call: Call, position: int) -> tuple[Any, Value | None]:
    """Return weight and bias of a module, or a function's arguments from ``position`` on."""
    if isinstance(call.target, nn.Module):
        return call.own("weight"), call.own("bias")
    return call.argument(position, "weight"), call.argument(position + 1, "bias")


def _units(call: Call, units: torch.Tensor | None, bias: Value | None) -> torch.Tensor | None:
    """Tie new units to their bias, and record them if they are a layer's."""
    if bias is not None:
        call.tie(units, bias.axes.get(0))
    if units is not None and isinstance(call.owner, LAYERS) and units_of(call.owner) == len(units):
        call.findings.units.setdefault(call.path, units)
    return units


def _tie_channels(call: Call, own: Iterable[Value | None]) -> None:
    """Tie one-dimensional weights and statistics to the channels."""
    for tensor in own:
        if tensor is not None:
            call.tie(call.x.axes.get(1), tensor.axes.get(0))


def _groups(call: Call, weight: Value) -> int:
    """Return a convolution's groups; UnfollowedError for literal groups or without a batch."""
    if weight.tensor.ndim != call.x.tensor.ndim:
        raise UnfollowedError(f"its units meet {call} without a batch dimension")
    groups = call.setting(6, "groups", 1)
    if groups > 1 and not (isinstance(call.owner, Convolution) and groups == call.owner.groups):
        raise UnfollowedError(f"the number of groups is fixed in the code, at {call}")
    call.freeze(call.x, range(2, call.x.tensor.ndim), "which mixes positions")
    call.freeze(weight, range(2, weight.tensor.ndim), "which uses them as kernel positions")
    if groups > 1:  # an ungrouped convolution may share the weight
        call.freeze(weight, (1,), "whose groups have this width")
    return groups


def _convolved(
    call: Call,
    read: torch.Tensor | None,
    made: torch.Tensor | None,
    bias: Value | None,
    groups: int,
) -> Any:
    """Return the result of a convolution that reads and makes these units."""
    units = _units(call, made, bias)
    if groups > 1:  # else they are sizes of the weight
        call.follows("in_channels", read)
        call.follows("out_channels", units)
        if read is not None:
            call.follows("groups", read, per=len(read) // groups)
    batch = {dim: row for dim, row in call.x.axes.items() if dim == 0}
    return call.result(_with(batch, 1, units))


def _with(axes: Axes, dim: int, numbers: torch.Tensor | None) -> Axes:
    """Return the axes with ``numbers`` along ``dim``; None: with none there."""
    rest = {d: row for d, row in axes.items() if d != dim}
    return rest if numbers is None else rest | {dim: numbers}


def _batch(value: Value) -> Value:
    """Return a value without its last two dimensions."""
    rest = value.tensor.ndim - 2
    return Value(value.tensor.sum((-2, -1)), {d: row for d, row in value.axes.items() if d < rest})
