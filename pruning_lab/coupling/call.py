"""One operation of a traced model, as passed to the rules, and the results that they record."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn

from pruning_lab.coupling.slots import Slots
from pruning_lab.coupling.values import Axes, Extent, Value, mapped
from pruning_lab.coupling.widths import Key, Width
from pruning_lab.graph.kinds import COMPUTED


class UnfollowedError(Exception):
    """A rule cannot follow the units through this call; the message is the reason."""


@dataclass(frozen=True)
class Attribute:
    """A module's attribute that shrinks with its units: its value is ``len(numbers) // per``.

    ``index`` is the position in a tuple (a LayerNorm's shape), else None; ``numbers`` is None where
    nothing can be removed.
    """

    module: str
    name: str
    index: int | None
    numbers: torch.Tensor | None
    per: int


@dataclass
class Findings:
    """Results of the rules over one or more traces of a model."""

    slots: Slots = field(default_factory=Slots)
    units: dict[str, torch.Tensor] = field(default_factory=dict)  # layer -> numbers of its units
    attributes: dict[Key, Attribute] = field(default_factory=dict)
    dropouts: dict[str, torch.Tensor] = field(default_factory=dict)  # module -> numbers it sees
    read: set[Key] = field(default_factory=set)  # widths that the code calculates with
    passed: set[Key] = field(default_factory=set)  # widths that it passes to operations


@dataclass(frozen=True)
class Call:
    """A call of ``target``: a function, the name of a method, or the module at ``path``.

    For a function ``path`` is the innermost module whose forward calls it.
    """

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    path: str
    owner: Any  # the module at path
    findings: Findings
    parameter: Callable[[str], Value | None]

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
        """Return the same call with plain integers for sizes."""

        def number(item: Any) -> Any:
            return item.value if isinstance(item, Extent) else item

        args, kwargs = mapped(self.args, number), mapped(self.kwargs, number)
        return replace(self, args=args, kwargs=kwargs)

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

    def evaluate(self, x: torch.Tensor | None = None) -> Any:
        """Run the operation on its tensors without data, or with ``x`` as its first argument."""
        args, kwargs = _plain(self.args), _plain(self.kwargs)
        if x is not None:
            args = (x, *args[1:])
        if isinstance(self.target, str):
            # without data a convolution's strides may differ from the real ones, so view() may fail
            sized = self.target == "view" and not isinstance(args[-1], torch.dtype)
            return getattr(args[0], "reshape" if sized else self.target)(*args[1:], **kwargs)
        return self.target(*args, **kwargs)

    def result(self, axes: Axes | None = None) -> Any:
        """Return the operation's output; every tensor in it gets ``axes``."""
        return with_axes(self.evaluate(), axes or {})

    def tie(self, one: torch.Tensor | None, other: torch.Tensor | None) -> None:
        """Tie corresponding entries; None stands for entries that belong to no unit."""
        reason = f"its units meet values that belong to no unit, in {self}"
        if one is not None and other is not None:
            if len(one) != len(other):
                raise UnfollowedError(f"its units meet a different number of units, in {self}")
            self.slots.tie(one, other, reason)
        elif (numbers := one if one is not None else other) is not None:
            self.slots.freeze(numbers, reason)

    def freeze(self, value: Value, dims: Any = None, reason: str = "which mixes them") -> None:
        """Freeze the units along ``dims`` (None: along all)."""
        for dim, numbers in value.axes.items():
            if dims is None or dim in dims:
                self.slots.freeze(numbers, f"its units meet {self}, {reason}")

    def freeze_size(self, size: Extent) -> None:
        """Freeze the units that ``size`` counts."""
        self.slots.freeze(size.numbers, f"their number is used in the code, at {self}")

    def follows(
        self, name: str, numbers: torch.Tensor | None, per: int = 1, index: int | None = None
    ) -> None:
        """Let the owner's attribute ``name`` shrink with ``numbers``; tie those of all calls."""
        attribute = Attribute(self.path, name, index, numbers, per)
        known = self.findings.attributes.setdefault((self.path, name, index), attribute)
        if known is not attribute:
            self.tie(known.numbers, numbers)

    def own(self, name: str) -> Value | None:
        """Return a parameter or buffer of the owner, or None; UnfollowedError if it is computed."""
        if getattr(self.owner, name, None) is None:
            return None
        stored = self.owner._parameters | self.owner._buffers
        if name not in stored:
            raise UnfollowedError(f"the {name} of '{self.path}' {COMPUTED}")
        return self.parameter(f"{self.path}.{name}" if self.path else name)


def with_axes(result: Any, axes: Axes) -> Any:
    """Return an operation's result with every tensor as a Value with these axes."""

    def value(item: Any) -> Any:
        return Value(item.to("meta"), dict(axes)) if isinstance(item, torch.Tensor) else item

    return mapped(result, value)


def _collected(arguments: Any, kind: type) -> list[Any]:
    collected: list[Any] = []

    def collect(item: Any) -> Any:
        if isinstance(item, kind):
            collected.append(item)
        return item

    fx.node.map_aggregate(arguments, collect)
    return collected


def _plain(arguments: Any) -> Any:
    """Return Values as their tensors and Extents as integers, in containers that may be changed."""

    def plain(item: Any) -> Any:
        if isinstance(item, Value):
            return item.tensor
        return item.value if isinstance(item, Extent) else item

    return mapped(arguments, plain)
