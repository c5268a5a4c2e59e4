"""Detect widths of modules, such as ``out_channels``, that the traced code calculates with."""

from collections.abc import Callable
from typing import Any

from torch import nn

from pruning_lab.errors import UserError
from pruning_lab.graph.kinds import WIDTHS, WITH_WIDTHS

Key = tuple[str, str, int | None]
"""Module, attribute, and the position in it if it is a tuple."""


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


Place = tuple[nn.Module, str, Any]
"""A module, its attribute, and the Width or tuple of Widths stored there."""


def watch(model: nn.Module, read: Callable[[Key], None]) -> list[Place]:
    """Replace all widths by Widths, which call ``read`` when calculated with; return the places."""
    places: list[Place] = []
    for path, module in model.named_modules():
        for name in WIDTHS if isinstance(module, WITH_WIDTHS) else ():
            value = vars(module).get(name)
            if isinstance(value, tuple):
                keys = [(path, name, index) for index in range(len(value))]
                entries = (_width(size, key, read) for size, key in zip(value, keys, strict=True))
                places.append((module, name, tuple(entries)))
            elif type(value) is int:
                places.append((module, name, _width(value, (path, name, None), read)))
    for module, name, widths in places:
        setattr(module, name, widths)
    return places


def read_unnoticed(places: list[Place], usual: str, traced: Callable[[], str]) -> set[Key]:
    """Return the widths at ``places`` that, when changed, make ``traced()`` differ from ``usual``.

    This finds reads that a Width does not notice, by ``range`` or ``torch.tensor``. All widths are
    changed at once and, if that makes a difference, one after the other.
    """

    def decide(changed: list[Place]) -> bool:
        return any(_with_others(changed, change, traced) != usual for change in (_more, _half))

    if not decide(places):
        return set()
    deciding = [place for place in places if decide([place])]
    return {width.key for *_, value in deciding or places for width in _widths_in(value)}


def _more(width: int, number: int) -> int:
    """Return another width, such that equal widths become different."""
    return width + 1 + number


def _half(width: int, number: int) -> int:
    """Return a width that also differs for code that rounds widths to powers of two."""
    return max(1, width // 2)


def _with_others(
    places: list[Place], other: Callable[[int, int], int], traced: Callable[[], str]
) -> str | None:
    """Return the trace with all widths changed by ``other``; None if the code then fails."""
    for number, (module, name, value) in enumerate(places):
        changed = [
            _width(other(int.__add__(width, 0), number), width.key, width.read)
            for width in _widths_in(value)
        ]
        setattr(module, name, tuple(changed) if isinstance(value, tuple) else changed[0])
    try:
        return traced()
    except UserError:  # the code depends on the width
        return None
    finally:
        for module, name, value in places:
            setattr(module, name, value)


def _width(value: int, key: Key, read: Callable[[Key], None]) -> Width:
    width = Width(value)
    width.key, width.read = key, read
    return width


def _widths_in(value: Any) -> list[Width]:
    return list(value) if isinstance(value, tuple) else [value]
