"""The model traced once: who reads a layer's units, and where their activation is read."""

import operator
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from pruning_lab.errors import UserError
from pruning_lab.graph.cut import Cut, record
from pruning_lab.graph.kinds import (
    LAYERS,
    TRANSPARENT_FUNCTIONS,
    BatchNorm,
    Convolution,
    Dropout,
    inputs_of,
    is_non_linearity,
    is_pool,
    units_of,
)


class UntraceableError(UserError):
    """The model's forward cannot be traced (its control flow depends on the data)."""


@dataclass(frozen=True)
class Follower:
    """A module that must follow when units of a layer in front of it go.

    ``positions`` is how many consecutive inputs belong to one unit: H*W behind a Flatten, else 1.
    """

    module: nn.Module
    name: str
    positions: int


class _Tracer(fx.Tracer):
    """Keeps every module without children whole, a user's own too: it may be asked for a score."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not list(m.children()) or super().is_leaf_module(m, module_qualified_name)


@dataclass(frozen=True)
class _Stream:
    """Units on their way from a layer: the node that carries them, and how."""

    node: fx.Node
    last: bool  # the units lie in the last dimension (a Linear's output, or behind a Flatten)
    channels: bool  # a convolution's: a Flatten makes a block of consecutive inputs of each unit


def trace(model: nn.Module) -> "Graph":
    """Trace ``model`` with torch.fx; raises UntraceableError with torch's reason when it cannot."""
    try:
        return Graph(model, _Tracer().trace(model))
    except Exception as error:  # tracing runs the user's code: anything may be raised
        raise UntraceableError(
            f"{type(model).__name__} cannot be traced: {error}. Name the modules that read a "
            "layer's units yourself: prune_model(layer, indices, cascading_modules=[...])."
        ) from error


class Graph:
    """The operations of a model in order of execution; it shares the model's modules.

    Modules may be sliced while the graph lives: widths are read off the modules when asked for.
    """

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        self.module = fx.GraphModule(model, graph)
        self._names = {module: name for name, module in model.named_modules()}
        self._calls: dict[nn.Module, list[fx.Node]] = {}
        for node in graph.nodes:
            if node.op == "call_module":
                self._calls.setdefault(self._called(node), []).append(node)

    def layers(self) -> dict[str, nn.Module]:
        """The layers whose units can be removed, by qualified name, in order of execution."""
        return {
            self._names[module]: module
            for module in self._calls
            if isinstance(module, LAYERS) and self._refusal(module) is None
        }

    def frozen(self) -> dict[str, str]:
        """The Linear and convolution layers whose units cannot be removed, with the reason."""
        reasons = {
            self._names[module]: self._refusal(module)
            for module in self._calls
            if isinstance(module, LAYERS)
        }
        return {name: reason for name, reason in reasons.items() if reason is not None}

    def followers(self, layer: nn.Module) -> list[Follower]:
        """The modules that must follow when units of ``layer`` go, in order of execution.

        Raises UserError with the reason when units of this layer cannot be removed.
        """
        if not isinstance(layer, LAYERS):
            raise UserError(
                f"{type(layer).__name__} has no units that can be removed; "
                "only Linear and convolution layers have."
            )
        if getattr(layer, "groups", 1) > 1:
            raise _refused(self._name(layer), "it is a grouped convolution")
        found = list(self._walk(layer))
        if not any(isinstance(follower.module, LAYERS) for follower in found):
            raise _refused(self._name(layer), "nothing reads its output")
        return found

    def site(self, module: nn.Module, behind: bool = False) -> fx.Node:
        """Where the activation of ``module``'s units is read.

        Its own output, or with ``behind`` the output of the BatchNorm and non-linearity that
        follow it directly.
        """
        node = self._only_call(module)
        while behind and len(node.users) == 1:
            user = next(iter(node.users))
            op = self._called(user) if user.op == "call_module" else user.target
            if not (isinstance(op, BatchNorm) or is_non_linearity(op)):
                break
            node = user
        return node

    def cut(self, site: fx.Node) -> Cut:
        """The model split behind ``site``."""
        return Cut(self.module, site)

    def record(
        self, x: torch.Tensor, sites: list[fx.Node]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The model's output for ``x`` and the activations at ``sites``, connected by autograd."""
        return record(self.module, x, sites)

    def _called(self, node: fx.Node) -> nn.Module:
        return self.module.get_submodule(str(node.target))

    def _name(self, module: nn.Module) -> str:
        if module not in self._names:
            raise UserError(f"This {type(module).__name__} is not part of the model: {module}.")
        return self._names[module]

    def _only_call(self, module: nn.Module) -> fx.Node:
        name, calls = self._name(module), self._calls.get(module, [])
        if len(calls) != 1:
            times = "never runs" if not calls else f"runs {len(calls)} times"
            raise _refused(name, f"it {times} in one forward pass")
        return calls[0]

    def _refusal(self, layer: nn.Module) -> str | None:
        try:
            self.followers(layer)
        except UserError as error:
            return str(error)
        return None

    def _walk(self, layer: nn.Module) -> Iterator[Follower]:
        """Follow the units of ``layer`` until every path ends in a layer that reads them."""
        name, units = self._name(layer), units_of(layer)
        channels = isinstance(layer, Convolution)
        streams = deque([_Stream(self._only_call(layer), not channels, channels)])
        while streams:
            stream = streams.popleft()
            for user in stream.node.users:
                if _is_batch_size(user):
                    continue
                if user.op == "call_module":
                    module = self._called(user)
                    if isinstance(module, LAYERS):
                        self._only_call(module)
                        positions = _positions(name, units, module, stream)
                        yield Follower(module, self._name(module), positions)
                        continue
                    if isinstance(module, BatchNorm | Dropout):
                        self._only_call(module)
                        width = inputs_of(module) if isinstance(module, BatchNorm) else units
                        positions = _blocks(name, units, width, module, stream)
                        yield Follower(module, self._name(module), positions)
                last = self._passed_on(name, stream, user)
                streams.append(_Stream(user, last, stream.channels))

    def _passed_on(self, name: str, stream: _Stream, user: fx.Node) -> bool:
        """Whether behind ``user`` the units lie in the last dimension; refuses what mixes them."""
        op = self._called(user) if user.op == "call_module" else user.target
        if user.op == "output":
            raise _refused(name, "the caller of the model sees its output")
        if isinstance(op, BatchNorm | Dropout | nn.Identity) or is_non_linearity(op):
            return stream.last
        if op in TRANSPARENT_FUNCTIONS:
            return stream.last
        if is_pool(op) and not stream.last:
            return False
        if _is_flatten(user, op):
            return True
        what = type(op).__name__ if isinstance(op, nn.Module) else getattr(op, "__name__", op)
        raise _refused(name, f"its units meet `{what}`, which cannot be followed")


def _refused(name: str, reason: str) -> UserError:
    return UserError(f"The units of layer '{name}' cannot be removed: {reason}.")


def _positions(name: str, units: int, reader: nn.Module, stream: _Stream) -> int:
    """How many inputs of ``reader`` belong to one unit; refuses a reader that mixes units."""
    if getattr(reader, "groups", 1) > 1:
        raise _refused(name, "they are read by a grouped convolution")
    if isinstance(reader, Convolution) == stream.last:
        raise _refused(name, f"{type(reader).__name__} reads them along another dimension")
    return _blocks(name, units, inputs_of(reader), reader, stream)


def _blocks(name: str, units: int, width: int, reader: nn.Module, stream: _Stream) -> int:
    """How many consecutive entries of ``width`` belong to one unit."""
    positions, rest = divmod(width, units)
    if positions > 1 and not (stream.channels and stream.last):
        raise _refused(name, f"{type(reader).__name__} reads them mixed with another dimension")
    if rest or not positions:
        raise _refused(
            name, f"{type(reader).__name__} has {width} inputs, not a multiple of {units} units"
        )
    return positions


def _is_flatten(node: fx.Node, op: object) -> bool:
    """``nn.Flatten()``, ``flatten(x, 1)``, ``x.view(batch, -1)`` or ``x.reshape(batch, -1)``."""
    if isinstance(op, nn.Flatten):
        return op.start_dim == 1 and op.end_dim == -1
    if op in (torch.flatten, "flatten"):
        given: dict[str, Any] = dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False))
        given |= node.kwargs
        return given.get("start_dim") == 1 and given.get("end_dim", -1) == -1
    if op in ("view", "reshape"):
        return node.args[2:] == (-1,) and _is_batch_size(node.args[1])
    return False


def _is_batch_size(node: object) -> bool:
    """``x.size(0)``, ``x.shape[0]``, or the ``x.shape`` that is only asked for its first entry."""
    if not isinstance(node, fx.Node):
        return False
    if node.op == "call_method":
        return node.target == "size" and node.args[1:] == (0,)
    if node.target is getattr:
        return node.args[1:] == ("shape",) and all(_is_batch_size(user) for user in node.users)
    if node.target is operator.getitem and node.args[1:] == (0,):
        return isinstance(node.args[0], fx.Node) and node.args[0].target is getattr
    return False
