"""One operation of a traced model, as passed to the rules, and the results that they record."""

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from pruning_lab.coupling.slots import Slots
from pruning_lab.coupling.values import Axes, Extent, Key, Value, all_of, mapped
from pruning_lab.graph.kinds import COMPUTED


class UnfollowedError(Exception):
    """A rule cannot follow the units through this call; the message is the reason."""


@dataclass
class Findings:
    """Results of the rules over one or more traces of ``model``, a skeleton.

    ``added`` maps the modules that run code outside the graph to the reason. An attribute that
    shrinks with units has the value ``len(numbers) // per``; its numbers are None where nothing can
    be removed.
    """

    model: nn.Module
    added: Mapping[str, str]
    slots: Slots = field(default_factory=Slots)
    units: dict[str, torch.Tensor] = field(default_factory=dict)  # layer -> numbers of its units
    attributes: dict[Key, tuple[torch.Tensor | None, int]] = field(default_factory=dict)
    dropouts: dict[str, torch.Tensor] = field(default_factory=dict)  # module -> numbers it sees
    read: set[Key] = field(default_factory=set)  # widths that the code calculates with

    def __post_init__(self) -> None:
        self.names = {id(tensor): name for name, tensor in tensors_of(self.model)}

    def labelled(self, tensor: torch.Tensor) -> Value:
        """Return a tensor of the model with its slots; other tensors have none."""
        name = self.names.get(id(tensor))
        if name is None:
            return Value(tensor.to("meta"))
        return Value(tensor, {d: self.slots.of(name, d, n) for d, n in enumerate(tensor.shape)})

    def freeze(self, value: Value, reason: str) -> None:
        """Freeze all units in ``value``."""
        for numbers in value.axes.values():
            self.slots.freeze(numbers, reason)


def tensors_of(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Return the parameters and buffers of a module by name."""
    return [*module.named_parameters(), *module.named_buffers()]


@dataclass(frozen=True)
class Call:
    """A call of ``target``: a function, the name of a method, or the module at ``path``.

    For a function ``path`` is the innermost module whose forward calls it. Where that module
    (``owner``) is a subclass of one of torch's, the sizes that its forward passes on may come from
    its attributes, which can shrink; other sizes are literals.
    """

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    path: str
    owner: Any  # the module at path
    findings: Findings

    @property
    def slots(self) -> Slots:
        return self.findings.slots

    @property
    def x(self) -> Value:
        """The first argument; UnfollowedError if it is no tensor."""
        if self.args and isinstance(self.args[0], Value):
            return self.args[0]
        raise UnfollowedError(f"its units meet {self}, whose input is no tensor")

    @property
    def values(self) -> list[Value]:
        """All tensors among the arguments."""
        return all_of(Value, (self.args, self.kwargs))

    @property
    def extents(self) -> list[Extent]:
        """All sizes among the arguments that count units."""
        return all_of(Extent, (self.args, self.kwargs))

    def with_numbers(self) -> "Call":
        """Return the same call with plain integers for sizes."""
        return replace(self, args=mapped(self.args, _number), kwargs=mapped(self.kwargs, _number))

    def __str__(self) -> str:
        name = self.target
        if isinstance(name, nn.Module):
            name = type(name).__name__
        return f"`{getattr(name, '__name__', name)}`"

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """Return an argument that may be given by position or by name."""
        if len(self.args) > position:
            return self.args[position]
        return self.kwargs.get(name, default)

    def setting(self, position: int, name: str, default: Any = None) -> Any:
        """Return an attribute of the module that is called, or this argument of a function."""
        if isinstance(self.target, nn.Module):
            return getattr(self.target, name)
        return self.argument(position, name, default)

    def evaluate(self, x: torch.Tensor | None = None) -> Any:
        """Run the operation on its tensors without data, or with ``x`` as its first argument."""
        args, kwargs = mapped(self.args, _plain), mapped(self.kwargs, _plain)
        if x is not None:
            args = (x, *args[1:])
        if isinstance(self.target, str):
            # without data a convolution's strides may differ from the real ones, so view() may fail
            sized = self.target == "view" and not isinstance(args[-1], torch.dtype)
            return getattr(args[0], "reshape" if sized else self.target)(*args[1:], **kwargs)
        return self.target(*args, **kwargs)

    def result(self, axes: Axes | None = None) -> Any:
        """Return the operation's output; every tensor in it gets ``axes``."""

        def value(item: Any) -> Any:
            if not isinstance(item, torch.Tensor):
                return item
            return Value(item.to("meta"), dict(axes or {}))

        return mapped(self.evaluate(), value)

    def tie(self, one: torch.Tensor | None, other: torch.Tensor | None) -> None:
        """Tie corresponding entries; None stands for entries that belong to no unit."""
        reason = f"its units meet values that belong to no unit, in {self}"
        if one is not None and other is not None:
            if len(one) != len(other):
                raise UnfollowedError(f"its units meet a different number of units, in {self}")
            self.slots.tie(one, other, reason)
        elif (numbers := one if one is not None else other) is not None:
            self.slots.freeze(numbers, reason)

    def tie_rows(self, rows: torch.Tensor) -> None:
        """Tie all entries of each row."""
        self.tie(rows[:, :1], rows)

    def freeze(
        self, value: Value, dims: Container[int] | None = None, reason: str = "which mixes them"
    ) -> None:
        """Freeze the units along ``dims`` (None: along all)."""
        for dim, numbers in value.axes.items():
            if dims is None or dim in dims:
                self.slots.freeze(numbers, f"its units meet {self}, {reason}")

    def freeze_sizes(self, sizes: Iterable[Extent]) -> None:
        """Freeze the units that ``sizes`` count."""
        for size in sizes:
            self.slots.freeze(size.numbers, f"their number is used in the code, at {self}")

    def follows(
        self, name: str, numbers: torch.Tensor | None, per: int = 1, index: int | None = None
    ) -> None:
        """Let the owner's attribute ``name`` shrink with ``numbers``; tie those of all calls.

        ``index`` is the position in a tuple (a LayerNorm's shape), else None.
        """
        known = self.findings.attributes.setdefault((self.path, name, index), (numbers, per))[0]
        if known is not numbers:
            self.tie(known, numbers)

    def own(self, name: str) -> Value | None:
        """Return a parameter or buffer of the owner, or None; UnfollowedError if it is computed."""
        if getattr(self.owner, name, None) is None:
            return None
        stored = self.owner._parameters | self.owner._buffers
        if name not in stored:
            raise UnfollowedError(f"the {name} of '{self.path}' {COMPUTED}")
        return self.findings.labelled(stored[name])


def _number(item: Any) -> Any:
    return item.value if isinstance(item, Extent) else item


def _plain(item: Any) -> Any:
    return item.tensor if isinstance(item, Value) else _number(item)
