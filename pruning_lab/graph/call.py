"""One operation of a traced model, as the rules see it."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn

from pruning_lab.graph.kinds import COMPUTED
from pruning_lab.graph.slots import Slots
from pruning_lab.graph.values import Axes, Extent, Value, mapped
from pruning_lab.graph.widths import Key, Width


class UnfollowedError(Exception):
    """A rule cannot follow the units through this call; the message is the reason."""


@dataclass(frozen=True)
class Attribute:
    """A number that a module remembers and that shrinks with its units: ``len(numbers) // per``.

    ``index`` is the place in a tuple (a LayerNorm's shape), else None; ``numbers`` is None where
    nothing can go.
    """

    module: str
    name: str
    index: int | None
    numbers: torch.Tensor | None
    per: int


@dataclass
class Findings:
    """What the rules find out, over one or more traces of a model."""

    slots: Slots = field(default_factory=Slots)
    units: dict[str, torch.Tensor] = field(default_factory=dict)  # layer -> numbers of its units
    attributes: dict[Key, Attribute] = field(default_factory=dict)
    dropouts: dict[str, torch.Tensor] = field(default_factory=dict)  # module -> numbers it sees
    read: set[Key] = field(default_factory=set)  # widths that the code calculates with
    passed: set[Key] = field(default_factory=set)  # widths that it hands to operations


@dataclass(frozen=True)
class Call:
    """``target`` is a function, the name of a method, or the module at ``path``.

    For a function ``path`` is the innermost module whose forward calls it.
    """

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    path: str
    owner: Any  # a module
    findings: Findings
    parameter: Callable[[str], Value | None]

    @property
    def slots(self) -> Slots:
        return self.findings.slots

    @property
    def x(self) -> Value:
        """The first argument."""
        if self.args and isinstance(self.args[0], Value):
            return self.args[0]
        raise UnfollowedError(f"its units meet {self}, whose input is no tensor")

    @property
    def values(self) -> list[Value]:
        """All tensors among the arguments."""
        return _collected((self.args, self.kwargs), Value)

    @property
    def extents(self) -> list[Extent]:
        """All sizes among the arguments that count units."""
        return _collected((self.args, self.kwargs), Extent)

    @property
    def widths(self) -> list[Width]:
        """All widths of modules among the arguments."""
        return _collected((self.args, self.kwargs), Width)

    def with_numbers(self) -> "Call":
        """The same call with plain numbers for sizes."""

        def number(each: Any) -> Any:
            return each.value if isinstance(each, Extent) else each

        args, kwargs = mapped(self.args, number), mapped(self.kwargs, number)
        return replace(self, args=args, kwargs=kwargs)

    def __str__(self) -> str:
        name = self.target
        if isinstance(name, nn.Module):
            name = type(name).__name__
        return f"`{getattr(name, '__name__', name)}`"

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument that may be given by position or by name."""
        if len(self.args) > position:
            return self.args[position]
        return self.kwargs.get(name, default)

    def evaluate(self, x: torch.Tensor | None = None) -> Any:
        """What the operation gives for data without values, or for ``x`` as its first argument."""
        args, kwargs = _plain(self.args), _plain(self.kwargs)
        if x is not None:
            args = (x, *args[1:])
        if isinstance(self.target, str):
            # without data a convolution's strides may differ from the real ones, which view() minds
            sized = self.target == "view" and not isinstance(args[-1], torch.dtype)
            return getattr(args[0], "reshape" if sized else self.target)(*args[1:], **kwargs)
        return self.target(*args, **kwargs)

    def result(self, axes: Axes | None = None) -> Any:
        """The operation's output; every tensor of it has ``axes``."""
        return with_axes(self.evaluate(), axes or {})

    def tie(self, one: torch.Tensor | None, other: torch.Tensor | None) -> None:
        """Corresponding entries go together; None stands for entries that belong to no unit."""
        reason = f"its units meet values that belong to no unit, in {self}"
        if one is not None and other is not None:
            if len(one) != len(other):
                raise UnfollowedError(f"its units meet others of another number, in {self}")
            self.slots.tie(one, other, reason)
        elif (numbers := one if one is not None else other) is not None:
            self.slots.freeze(numbers, reason)

    def freeze(self, value: Value, dims: Any = None, reason: str = "which mixes them") -> None:
        """The units along ``dims`` (None: all) cannot go."""
        for dim, numbers in value.axes.items():
            if dims is None or dim in dims:
                self.slots.freeze(numbers, f"its units meet {self}, {reason}")

    def freeze_size(self, size: Extent) -> None:
        """The units that ``size`` counts cannot go."""
        self.slots.freeze(size.numbers, f"their number is used in the code, at {self}")

    def follows(
        self, name: str, numbers: torch.Tensor | None, per: int = 1, index: int | None = None
    ) -> None:
        """The owner's attribute ``name`` shrinks with ``numbers``, whenever the owner is called."""
        attribute = Attribute(self.path, name, index, numbers, per)
        known = self.findings.attributes.setdefault((self.path, name, index), attribute)
        if known is not attribute:
            self.tie(known.numbers, numbers)

    def own(self, name: str) -> Value | None:
        """A parameter or buffer of the owner; None when it has none."""
        if getattr(self.owner, name, None) is None:
            return None
        stored = self.owner._parameters | self.owner._buffers
        if name not in stored:
            raise UnfollowedError(f"the {name} of '{self.path}' {COMPUTED}")
        return self.parameter(f"{self.path}.{name}" if self.path else name)


def with_axes(result: Any, axes: Axes) -> Any:
    """Every tensor of an operation's result as a value with these axes."""

    def value(each: Any) -> Any:
        return Value(each.to("meta"), dict(axes)) if isinstance(each, torch.Tensor) else each

    return mapped(result, value)


def _collected(arguments: Any, kind: type) -> list[Any]:
    found: list[Any] = []

    def collect(each: Any) -> Any:
        if isinstance(each, kind):
            found.append(each)
        return each

    fx.node.map_aggregate(arguments, collect)
    return found


def _plain(arguments: Any) -> Any:
    """Values as their tensors, extents as whole numbers, in containers that may be changed."""

    def plain(each: Any) -> Any:
        if isinstance(each, Value):
            return each.tensor
        return each.value if isinstance(each, Extent) else each

    return mapped(arguments, plain)
