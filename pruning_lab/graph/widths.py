"""Modules' widths that the traced code reads as numbers: the model computes with them."""

from collections.abc import Callable
from typing import Any

from torch import nn

from pruning_lab.errors import UserError
from pruning_lab.graph.kinds import WIDTHS, WITH_WIDTHS

Key = tuple[str, str, int | None]
"""Module, attribute, and the place in it if it is a tuple."""


class Width(int):
    """A width that notices when it is calculated or compared with."""

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
"""A module, its attribute, and the Width or the tuple of Widths that stands there."""


def watch(model: nn.Module, read: Callable[[Key], None]) -> list[Place]:
    """Put a Width in the place of every width; ``read`` is told which are calculated with."""
    places: list[Place] = []
    for path, module in model.named_modules():
        for name in WIDTHS if isinstance(module, WITH_WIDTHS) else ():
            value = vars(module).get(name)
            if isinstance(value, tuple):
                keys = [(path, name, index) for index in range(len(value))]
                entries = (_width(each, key, read) for each, key in zip(value, keys, strict=True))
                places.append((module, name, tuple(entries)))
            elif type(value) is int:
                places.append((module, name, _width(value, (path, name, None), read)))
    for module, name, widths in places:
        setattr(module, name, widths)
    return places


def read_unnoticed(places: list[Place], usual: str, traced: Callable[[], str]) -> set[Key]:
    """The widths at watched places without which ``traced()`` is not as ``usual``.

    ``range`` and ``torch.tensor`` read a width without its notice, but not without consequences
    when it is another one: all of them at once, and if that shows, one after the other.
    """

    def decide(some: list[Place]) -> bool:
        return any(_with_others(some, other, traced) != usual for other in (_more, _half))

    if not decide(places):
        return set()
    found = [place for place in places if decide([place])]
    return {width.key for *_, value in found or places for width in _widths_in(value)}


def _more(width: int, number: int) -> int:
    """Widths that were equal no longer are."""
    return width + 1 + number


def _half(width: int, number: int) -> int:
    """Even what reads a width by powers of two sees another one."""
    return max(1, width // 2)


def _with_others(
    places: list[Place], other: Callable[[int, int], int], traced: Callable[[], str]
) -> str | None:
    """What is traced when every width is another one."""
    for number, (module, name, value) in enumerate(places):
        others = [
            _width(other(int.__add__(width, 0), number), width.key, width.read)
            for width in _widths_in(value)
        ]
        setattr(module, name, tuple(others) if isinstance(value, tuple) else others[0])
    try:
        return traced()
    except UserError:  # the code minds
        return None
    finally:
        for module, name, value in places:
            setattr(module, name, value)


def _width(value: int, key: Key, read: Callable[[Key], None]) -> Width:
    found = Width(value)
    found.key, found.read = key, read
    return found


def _widths_in(value: Any) -> list[Width]:
    return list(value) if isinstance(value, tuple) else [value]
