"""The model's operations, traced once: where units are read, and the part behind such a site."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn

from pruning_lab.errors import UserError
from pruning_lab.graph.cut import Cut, record
from pruning_lab.graph.folding import Substitutes
from pruning_lab.graph.in_place import use_results
from pruning_lab.graph.kinds import LAYERS, BatchNorm, is_non_linearity, units_of
from pruning_lab.graph.parts import descendants
from pruning_lab.graph.shares import Share, share_of, weigh
from pruning_lab.random_streams import streams_kept


class UntraceableError(UserError):
    """The model's forward cannot be traced (its control flow depends on the data)."""


class _Tracer(fx.Tracer):
    """Traces into every module but torch's own, and remembers where each module's output is.

    A module whose forward cannot be traced is kept whole, as torch's own are.
    """

    proxy_buffer_attributes = True

    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[nn.Module, list[fx.Node]] = {}

    def _proxy_placeholder(self, name: str, concrete: Any, signature: Any, function: Any) -> Any:
        """Only the first argument is given: the others keep their defaults."""
        parameter = signature.parameters.get(name)
        first = next(iter(signature.parameters), None) == name
        if parameter is not None and parameter.default is not parameter.empty and not first:
            return parameter.default
        return super()._proxy_placeholder(name, concrete, signature, function)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        last, stack = next(iter(reversed(self.graph.nodes))), self.module_stack.copy()
        try:
            output = super().call_module(m, forward, args, kwargs)
        except Exception:  # tracing runs the user's code: anything may be raised
            for node in reversed(self.graph.nodes):
                if node is last:
                    break
                self.graph.erase_node(node)
            self.module_stack = stack
            output = self.create_proxy("call_module", self.path_of_module(m), args, kwargs)
        if isinstance(output, fx.Proxy):
            self.outputs.setdefault(m, []).append(output.node)
        return output


def trace(model: nn.Module) -> "Graph":
    """Trace ``model`` with torch.fx; raises UntraceableError with torch's reason when it cannot."""
    with streams_kept(), _attributes(model):
        tracer = _traced(model)
        return Graph(model, tracer.graph, tracer.outputs)


def operations(model: nn.Module) -> fx.Graph:
    """The operations alone, of a copy of a model; raises UntraceableError like ``trace``.

    Constants of the code stay with the copy.
    """
    with streams_kept():
        return _traced(model).graph


def _traced(model: nn.Module) -> _Tracer:
    tracer = _Tracer()
    try:
        graph = tracer.trace(model)
    except Exception as error:  # tracing runs the user's code: anything may be raised
        raise untraceable(model, error) from error
    use_results(graph, model)
    return tracer


@contextmanager
def _attributes(model: nn.Module) -> Iterator[None]:
    """What the code writes to its modules while it is traced is put back."""
    modules = list(model.modules())
    attributes = [dict(vars(module)) for module in modules]
    held = {
        id(value): (value, copy.copy(value))
        for own in attributes
        for value in own.values()
        if type(value) in (dict, list, set)
    }
    try:
        yield
    finally:
        for module, own in zip(modules, attributes, strict=True):
            vars(module).clear()
            vars(module).update(own)
        for value, before in held.values():
            value.clear()
            (value.extend if isinstance(value, list) else value.update)(before)


def untraceable(model: nn.Module, reason: object) -> UntraceableError:
    """The error for a model whose units cannot be followed, with what to do instead."""
    why = str(reason).rstrip(". ") or type(reason).__name__
    return UntraceableError(
        f"{type(model).__name__} cannot be traced: {why}. Name the modules "
        "that read a layer's units yourself: prune_model(layer, indices, cascading_modules=[...])."
    )


class Graph:
    """The operations of a model in order of execution; it shares the model's modules.

    Trace anew after pruning, since code that writes a width as a number is traced with that number,
    and after a change of weights, since cuts share modules that were made out of them.
    """

    def __init__(
        self, model: nn.Module, graph: fx.Graph, outputs: dict[nn.Module, list[fx.Node]]
    ) -> None:
        self.module = fx.GraphModule(model, graph)
        self._names = {module: name for name, module in model.named_modules()}
        self._outputs = outputs
        self._made: Substitutes = {}

    def site(self, module: nn.Module, behind: bool = False) -> fx.Node:
        """Where the activation of ``module``'s units is read.

        Its own output, or with ``behind`` the output of the BatchNorm and non-linearity that
        follow it directly. Raises UserError for a module that does not run exactly once.
        """
        runs = self.sites(module, behind)
        if len(runs) != 1:
            times = "never runs" if not runs else f"runs {len(runs)} times"
            raise UserError(
                f"'{self._names[module]}' {times} in one forward pass: there is no single place "
                "where its activation could be read."
            )
        return runs[0]

    def sites(self, module: nn.Module, behind: bool = False) -> list[fx.Node]:
        """The same for every run of the module."""
        if module not in self._names:
            raise UserError(f"This {type(module).__name__} is not part of the model: {module}.")
        return [self._last(node) if behind else node for node in self._outputs.get(module, [])]

    def entering(self, module: nn.Module) -> fx.Node:
        """What goes into ``module``, which runs once; UserError where that cannot be read.

        That is where a module is traced into, and where its first argument is no tensor.
        """
        node = self.site(module)
        given = node.args[0] if node.args else node.kwargs.get("input")
        if node.op != "call_module" or not isinstance(given, fx.Node):
            raise UserError(
                f"What goes into '{self._names[module]}' cannot be read: it has code of its own, "
                "or is not called with a tensor as its first argument."
            )
        return given

    def norm_behind(self, module: nn.Module) -> nn.Module | None:
        """The BatchNorm that directly follows ``module`` (which runs once), if one does.

        And that has a channel for each of its units: it may normalise another dimension.
        """
        node = self.site(module)
        user = next(iter(node.users)) if len(node.users) == 1 else node
        found = self._called(user) if user.op == "call_module" else None
        if user is node or not isinstance(found, BatchNorm) or not isinstance(module, LAYERS):
            return None
        return found if found.num_features == units_of(module) else None

    def _last(self, node: fx.Node) -> fx.Node:
        """The last of the BatchNorms and non-linearities that directly follow ``node``."""
        while len(node.users) == 1:
            user = next(iter(node.users))
            op = self._called(user) if user.op == "call_module" else user.target
            if not (isinstance(op, BatchNorm) or is_non_linearity(op)):
                break
            node = user
        return node

    def weigh(self, x: torch.Tensor) -> None:
        """Find out which share of a pass each operation takes; cuts made from then on know it."""
        weigh(self.module, x)

    def share(self, site: fx.Node) -> Share:
        """Which share of a pass the operation at ``site`` takes, once the graph is weighed."""
        return share_of([site])

    def share_back(self, sites: Sequence[fx.Node]) -> float:
        """Which share of a whole backward pass leads to ``sites``, once the graph is weighed."""
        users = [user for site in sites for user in site.users]
        return share_of(descendants(users)).backward

    def cut(self, sites: Sequence[tuple[fx.Node, int]]) -> Cut:
        """The model split behind sites, each with the dimension in which its units lie."""
        return Cut(self.module, sites, self._made)

    def record(
        self, x: torch.Tensor, sites: list[fx.Node]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The model's output for ``x`` and the activations at ``sites``, connected by autograd."""
        return record(self.module, x, sites)

    def _called(self, node: fx.Node) -> nn.Module:
        return self.module.get_submodule(str(node.target))
