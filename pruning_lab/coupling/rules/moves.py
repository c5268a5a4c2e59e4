"""Rules of data movement: apply the operation to the units' numbers instead of the data.

A move is followed only where slicing before it gives the same as slicing after it.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from pruning_lab.coupling.call import Call, UnfollowedError
from pruning_lab.coupling.rules.elementwise import joined
from pruning_lab.coupling.slots import FIXED, components
from pruning_lab.coupling.values import Axes, Extent, Value

Free = Callable[[int, torch.Tensor], bool]
"""True if a dimension of the result shrinks by itself when some of these numbers are removed."""


def move(call: Call) -> Any:
    """permute, flatten, ...: the arguments of the call do not contain the number of units."""
    return _moved(call, lambda dim, numbers: True)


def pixel_shuffle(call: Call) -> Any:
    """Move channels to space; tie those that make one new channel."""
    return _moved(call, lambda dim, numbers: dim == call.x.tensor.ndim - 3)


def keep_whole(call: Call) -> Any:
    """getitem, roll, narrow: follow units that the call does not change, however many they are."""
    return _moved(call, lambda dim, numbers: True, unchanged=True)


def squeeze(call: Call) -> Any:
    """Remove dimensions of size 1; freeze two units where one of these dimensions holds units."""
    dims = call.x.dims(call.argument(1, "dim"))
    for place, numbers in call.x.axes.items():
        if place in dims:
            call.slots.freeze(numbers[:2], f"a single unit would lose its dimension, at {call}")
    return move(call)


def pad(call: Call) -> Any:
    """Padded entries belong to no unit; units themselves can only be padded with a constant."""
    widths, constant = call.argument(1, "pad"), call.argument(2, "mode", "constant") == "constant"
    axes: Axes = {}
    for dim, numbers in call.x.axes.items():
        place = 2 * (call.x.tensor.ndim - 1 - dim)  # the widths begin with the last dimension
        before, after = widths[place : place + 2] or (0, 0)
        if before < 0 or after < 0 or ((before or after) and not constant):
            call.freeze(call.x, (dim,), "which cuts or repeats them")
        else:
            axes[dim] = F.pad(numbers, (before, after), value=FIXED)
    return call.result(axes)


def quarters(call: Call) -> Any:
    """Swin's patch merging: concatenate four neighbours along the last dimension."""
    axes, last = dict(call.x.axes), call.x.tensor.ndim - 1
    if last in axes:
        axes[last] = axes[last].repeat(4)
    call.freeze(call.x, range(last - 2, last), "which mixes positions")
    return call.result(axes)


def reshape(call: Call) -> Any:
    """view, reshape, unflatten, expand: freeze units along sizes that are literals."""
    sizes = _sizes(call)

    def free(dim: int, numbers: torch.Tensor) -> bool:
        size = sizes[dim]
        if isinstance(size, Extent):
            return call.slots.same(size.numbers, numbers)
        return size == -1

    result = _moved(call, free)
    lost = [size for dim, size in enumerate(sizes) if dim not in result.axes]
    call.freeze_sizes(size for size in lost if isinstance(size, Extent))
    return result


def chunk(call: Call) -> Any:
    """Divide into equal parts; tie the units at the same position in all parts."""
    return _in_parts(call, call.argument(1, "chunks"), call.argument(2, "dim", 0))


def split(call: Call) -> Any:
    """Follow where the sizes are equal shares of the number of units, not literals."""
    dim = call.argument(2, "dim", 0)
    size = call.argument(1, "split_size_or_sections", call.kwargs.get("split_size"))
    numbers = call.x.axes.get(dim % len(call.x.shape))
    sizes = list(size) if isinstance(size, list | tuple) else [size]
    first = sizes[0]
    if numbers is None or not isinstance(first, Extent):
        return _in_parts(call, None, dim)
    equal = all(isinstance(part, Extent) and part.factor == first.factor for part in sizes)
    if not equal or first.factor.numerator != 1 or not call.slots.same(first.numbers, numbers):
        raise UnfollowedError(f"their number is used in the code, at {call}")
    return _in_parts(call, first.factor.denominator, dim)


def glu(call: Call) -> Any:
    """Gate one half by the other; tie the units at the same position in both."""
    return _in_parts(call, 2, call.setting(1, "dim", -1))


def cat(call: Call) -> Any:
    """Concatenate along ``dim``; tie the units along all other dimensions."""
    parts, dim = _parts(call)
    parts = [part for part in parts if part.shape != (0,)] or parts  # torch skips these
    result, dim = call.evaluate(), dim % len(parts[0].shape)
    reduced = [Value(part.tensor.sum(dim), _without(part.axes, dim)) for part in parts]
    axes = _inserted(joined(call, reduced, reduced[0].shape), dim)
    row = torch.cat([part.row(dim) for part in parts])
    return Value(result, axes | {dim: row} if row.any() else axes)


def stack(call: Call) -> Any:
    """Tie the units at the same position; the new dimension holds no units."""
    parts, dim = _parts(call)
    result = call.evaluate()
    return Value(result, _inserted(joined(call, parts, parts[0].shape), dim % result.ndim))


def _moved(call: Call, free: Free, unchanged: bool = False) -> Any:
    x, result = call.x, call.evaluate()
    if len(call.values) > 1:
        raise UnfollowedError(f"its units meet {call}, which moves them by the values of a tensor")
    single = isinstance(result, torch.Tensor)
    axes: list[Axes] = [{} for _ in ([result] if single else result)]
    for dim, numbers in x.axes.items():
        shape = [1] * x.tensor.ndim
        shape[dim] = len(numbers)
        labels = numbers.view(shape).expand(x.shape)
        moved = call.evaluate(labels)
        for piece_axes, piece in zip(axes, [moved] if single else moved, strict=True):
            place, row = _along(call, piece, numbers, free)
            followed = not unchanged or (
                torch.equal(row, numbers) and _commutes(call, labels, numbers, piece, dim)
            )
            if place is None or place in piece_axes or not followed:
                call.slots.freeze(numbers, f"their number is fixed in the code, at {call}")
            else:
                piece_axes[place] = row
    if single:
        return Value(result, axes[0])
    return type(result)(Value(piece, axis) for piece, axis in zip(result, axes, strict=True))


def _along(
    call: Call, labels: torch.Tensor, numbers: torch.Tensor, free: Free
) -> tuple[int | None, torch.Tensor]:
    """Return the dimension along which the units lie now, or None, and their numbers there.

    Only one dimension can shrink. Numbers that differ along other dimensions are tied along these.
    """
    if not labels.numel():
        return None, numbers
    thin = labels
    for dim, stride in enumerate(labels.stride()):
        if stride == 0:  # expanded: all entries are the same
            thin = thin.narrow(dim, 0, 1)
    lines = {
        dim: thin.movedim(dim, 0).reshape(size, -1)
        for dim, size in enumerate(thin.shape)
        if (thin != thin.narrow(dim, 0, 1)).any() and free(dim, numbers)
    }
    if not lines:
        return None, numbers
    place = max(lines, key=lambda dim: _classes_left(lines[dim]))
    call.tie_rows(lines[place])
    return place, lines[place][:, 0]


def _commutes(
    call: Call, labels: torch.Tensor, numbers: torch.Tensor, moved: torch.Tensor, dim: int
) -> bool:
    """Return True if removing units before the move gives the same as removing them after it.

    Tries the last unit, and several numbers of first ones: remaining widths share few divisors.
    """
    width = len(numbers)
    counts = {min(count, width) for count in (1, 2, 3, width // 2, width - 1) if count > 0}
    for removed in (numbers[-1:], *(numbers[:count] for count in sorted(counts))):
        remaining = labels.index_select(dim, (~torch.isin(numbers, removed)).nonzero().flatten())
        try:
            result = call.evaluate(remaining) if remaining.numel() else remaining
        except (IndexError, RuntimeError):
            return False
        if not torch.equal(result.flatten(), moved[~torch.isin(moved, removed)]):
            return False
    return True


def _classes_left(rows: torch.Tensor) -> int:
    """Return the number of classes that remain if the numbers in each row are tied."""
    known, index = rows.unique(return_inverse=True)
    row = np.arange(len(rows)).repeat(rows.shape[1])
    count = len(known) + len(rows)
    return int(components(index.flatten().numpy(), len(known) + row, count).max()) + 1


def _sizes(call: Call) -> list[int | Extent]:
    """Return the shape that the call asks for, one size per dimension of its result."""
    module = isinstance(call.target, nn.Unflatten)
    if module or str(call) == "`unflatten`":
        (dim,) = call.x.dims(call.setting(1, "dim"))
        before, after = [-1] * dim, [-1] * (call.x.tensor.ndim - dim - 1)
        return [*before, *call.setting(2, "unflattened_size" if module else "sizes"), *after]
    sizes = call.args[1:] or tuple(call.kwargs.values())
    if sizes and isinstance(sizes[0], list | tuple):
        sizes = tuple(sizes[0])
    if not all(isinstance(size, int | Extent) for size in sizes):
        raise UnfollowedError(f"its units meet {call}, which cannot be followed")
    return list(sizes)


def _in_parts(call: Call, count: int | None, dim: int) -> Any:
    """Return the parts along ``dim``, ``count`` equal ones; None: freeze units along ``dim``."""
    axes, dim = dict(call.x.axes), dim % call.x.tensor.ndim
    if dim in axes and (count is None or len(axes[dim]) % count):
        call.slots.freeze(axes.pop(dim), f"their number is fixed in the code, at {call}")
    elif dim in axes and count is not None:
        same_place = axes[dim].view(count, -1).T
        call.tie_rows(same_place)
        axes[dim] = same_place[:, 0]
    return call.result(axes)


def _parts(call: Call) -> tuple[list[Value], int]:
    parts = call.argument(0, "tensors")
    if not isinstance(parts, list | tuple) or not all(isinstance(part, Value) for part in parts):
        raise UnfollowedError(f"its units meet {call}, which cannot be followed")
    return list(parts), call.argument(1, "dim", call.kwargs.get("axis", 0))


def _without(axes: Axes, dim: int) -> Axes:
    return {d - (d > dim): numbers for d, numbers in axes.items() if d != dim}


def _inserted(axes: Axes, dim: int) -> Axes:
    return {d + (d >= dim): numbers for d, numbers in axes.items()}
