"""Modules' widths that the traced code reads as numbers: the model computes with them."""

from collections.abc import Callable
from typing import Any

from torch import nn

from pruning_lab.graph.kinds import WIDTHS, WITH_WIDTHS

Key = tuple[str, str, int | None]
"""Module, attribute, and the place in it if it is a tuple."""


class Width(int):
    """A width that notices when it is calculated or compared with, by Python or by numpy.

    It does not notice being copied into an array or a tensor: ``torch.tensor(layer.out_features)``.
    """

    key: Key
    read: Callable[[Key], None]

    __hash__ = int.__hash__

    def __array_ufunc__(self, function: Any, method: str, *inputs: Any, **others: Any) -> Any:
        return getattr(function, method)(*map(_number, inputs), **others)


def _number(each: Any) -> Any:
    return int(each) if isinstance(each, Width) else each


def _noticed(name: str) -> Callable[..., Any]:
    plain = getattr(int, name)

    def operation(self: Width, *others: Any) -> Any:
        self.read(self.key)
        return plain(self, *others)

    return operation


OPERATIONS = """
add radd sub rsub mul rmul truediv rtruediv floordiv rfloordiv mod rmod divmod rdivmod pow rpow
neg pos abs round trunc floor ceil int float bool eq ne lt le gt ge
"""
for _name in OPERATIONS.split():
    setattr(Width, f"__{_name}__", _noticed(f"__{_name}__"))


def watch(model: nn.Module, read: Callable[[Key], None]) -> None:
    """Put a Width in the place of every width; ``read`` is told which are calculated with."""

    def width(value: Any, *key: Any) -> Any:
        if type(value) is not int:
            return value
        found = Width(value)
        found.key, found.read = key, read
        return found

    for path, module in model.named_modules():
        for name in WIDTHS if isinstance(module, WITH_WIDTHS) else ():
            value = vars(module).get(name)
            if isinstance(value, tuple):
                entries = (width(each, path, name, index) for index, each in enumerate(value))
                setattr(module, name, tuple(entries))
            elif value is not None:
                setattr(module, name, width(value, path, name, None))
