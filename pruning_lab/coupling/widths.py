"""Widths of modules, such as ``out_channels``: those that shrink, and those that code reads.

A width that the traced code calculates with must not change.
"""

from collections.abc import Callable
from typing import Any

from torch import nn

from pruning_lab.coupling.call import Findings
from pruning_lab.coupling.values import Key
from pruning_lab.errors import UserError
from pruning_lab.graph.kinds import WIDTHS, WITH_WIDTHS, Convolution, Norm, TransposedConvolution

SIZES: dict[type[nn.Module] | tuple[type[nn.Module], ...], list[tuple[str, str, int]]] = {
    nn.Linear: [("in_features", "weight", 1), ("out_features", "weight", 0)],
    TransposedConvolution: [("in_channels", "weight", 0), ("out_channels", "weight", 1)],
    Convolution: [("in_channels", "weight", 1), ("out_channels", "weight", 0)],
    Norm: [("num_features", name, 0) for name in ("weight", "bias", "running_mean")],
    nn.Embedding: [("embedding_dim", "weight", 1)],
    nn.GroupNorm: [("num_channels", "weight", 0)],
    (nn.LayerNorm, nn.RMSNorm): [("normalized_shape", "weight", 0)],
    nn.PReLU: [("num_parameters", "weight", 0)],
}
"""Attribute, tensor, dimension; a shape begins at that dimension. The first match applies."""


class Width(int):
    """A width that reports when it is used in a calculation or a comparison."""

    key: Key
    read: Callable[[Key], None]

    __hash__ = int.__hash__


def _noticed(name: str) -> Callable[..., Any]:
    plain = getattr(int, name)

    def operation(self: Width, *others: Any) -> Any:
        self.read(self.key)
        return plain(self, *others)

    return operation


OPERATIONS = """
add radd sub rsub mul rmul truediv rtruediv floordiv rfloordiv mod rmod divmod rdivmod pow rpow
neg pos abs round trunc floor ceil int float bool eq ne lt le gt ge and rand or ror xor rxor lshift
rlshift rshift rrshift invert
"""
for _name in OPERATIONS.split():
    setattr(Width, f"__{_name}__", _noticed(f"__{_name}__"))


Place = tuple[nn.Module, str, list[Width]]
"""A module, its attribute, and the Widths stored there: one, or a tuple of them."""

OTHERS: tuple[Callable[[int, int], int], ...] = (
    lambda width, place: width + 1 + place,  # equal widths become different
    lambda width, place: max(1, width // 2),  # for code that rounds widths to powers of two
)
"""Two other values for the width at the place of this number."""


def watch(model: nn.Module, read: Callable[[Key], None]) -> list[Place]:
    """Replace all widths by Widths, which call ``read`` when calculated with; return the places."""
    places: list[Place] = []
    for path, module in model.named_modules():
        for name in WIDTHS if isinstance(module, WITH_WIDTHS) else ():
            sizes = _sizes(module, name)
            widths = [_width(size, (path, name, index), read) for index, size in sizes]
            if widths:
                places.append((module, name, widths))
                _put(*places[-1])
    return places


def read_unnoticed(places: list[Place], usual: str, traced: Callable[[], str]) -> set[Key]:
    """Return the widths at ``places`` that, when changed, make ``traced()`` differ from ``usual``.

    This finds reads that a Width does not notice, by ``range`` or ``torch.tensor``. All widths are
    changed at once and, if that makes a difference, one after the other.
    """

    def decide(changed: list[Place]) -> bool:
        return any(_with_others(changed, other, traced) != usual for other in OTHERS)

    if not decide(places):
        return set()
    deciding = [place for place in places if decide([place])]
    return {width.key for *_, widths in deciding or places for width in widths}


def _with_others(
    places: list[Place], other: Callable[[int, int], int], traced: Callable[[], str]
) -> str | None:
    """Return the trace with all widths changed by ``other``; None if the code then fails."""
    for number, (module, name, widths) in enumerate(places):
        # int's own addition does not count as a read
        sizes = [other(int.__add__(width, 0), number) for width in widths]
        changed = [_width(size, w.key, w.read) for size, w in zip(sizes, widths, strict=True)]
        _put(module, name, changed)
    try:
        return traced()
    except UserError:  # the code depends on the width
        return None
    finally:
        for place in places:
            _put(*place)


def _width(value: int, key: Key, read: Callable[[Key], None]) -> Width:
    width = Width(value)
    width.key, width.read = key, read
    return width


def _put(module: nn.Module, name: str, widths: list[Width]) -> None:
    single = widths[0].key[2] is None
    setattr(module, name, widths[0] if single else tuple(widths))


def _sizes(module: nn.Module, attribute: str) -> list[tuple[int | None, int]]:
    """Return the numbers in an attribute, with their positions if it is a tuple."""
    value = vars(module).get(attribute)
    sizes = enumerate(value) if isinstance(value, tuple) else [(None, value)]
    return [(index, size) for index, size in sizes if isinstance(size, int)]


def add_sizes(findings: Findings) -> None:
    """Add the attributes that no rule has recorded.

    Rules only see calls of torch; a subclass's forward may compute the same in another way.
    """
    ranges = findings.slots.ranges()
    for path, module in findings.model.named_modules():
        kind = next((kind for kind in SIZES if isinstance(module, kind)), None)
        for attribute, tensor, dim in SIZES[kind] if kind else ():
            stored = findings.names.get(id((module._parameters | module._buffers).get(tensor)), "")
            for index, size in _sizes(module, attribute):
                numbers = ranges.get((stored, dim + (index or 0)))
                # int's own comparison does not count as a read of a Width
                if numbers is not None and int.__eq__(size, len(numbers)):
                    findings.attributes.setdefault((path, attribute, index), (numbers, 1))
