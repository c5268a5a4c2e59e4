"""The model's operations, traced once: where units are read, and the part behind such a site."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import fx, nn

from pruning_lab.errors import UserError
from pruning_lab.graph.cut import Cut, record
from pruning_lab.graph.folding import Substitutes
from pruning_lab.graph.in_place import use_results
from pruning_lab.graph.kinds import LAYERS, BatchNorm, is_non_linearity, units_of
from pruning_lab.graph.parts import descendants
from pruning_lab.graph.refusals import (
    UntraceableError,
    check_takes_one_tensor,
    told,
    untraceable,
)
from pruning_lab.graph.shares import Share, share_of, weigh
from pruning_lab.modes import state_kept, uncompiled
from pruning_lab.random_streams import streams_kept

__all__ = ["Graph", "UntraceableError", "operations", "trace", "untraceable"]

CONSTANT = "_tensor_constant"
"""How torch.fx names the tensors that the traced code makes: attributes of the model."""


class _Proxy(fx.Proxy):
    def __len__(self) -> int:
        raise fx.proxy.TraceError("len() of a tensor is not traced; write .shape[0]")


class _Tracer(fx.Tracer):
    """Traces into every module but torch's own, and remembers where each module's output is.

    A module whose forward cannot be traced is kept whole, as torch's own and ``whole`` are;
    ``kept`` says why. A ``bare`` model had its hooks removed: any that appear are the code's own.
    """

    def __init__(self, whole: Collection[nn.Module] = (), bare: bool = False) -> None:
        super().__init__()
        self._whole, self._bare = whole, bare
        self._tensors: dict[int, str] | None = None  # by id, once the model is known
        self.outputs: dict[nn.Module, list[fx.Node]] = {}
        self.kept: dict[nn.Module, str] = {}

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        """The model is called as its users call it, with one tensor: Python does the rest."""
        x = self.create_proxy("placeholder", "x", (), {})
        return (lambda root, x: root.forward(x)), [self.root, x]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m in self._whole or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        raise fx.proxy.TraceError(
            "the code decides by the data, or by a size or type of it, which tracing does not know"
        )

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        raise fx.proxy.TraceError(
            "the code goes through a shape or a result of unknown length one by one; name its "
            "parts instead (n, c, h, w = x.shape)"
        )

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """As torch's, which goes through all the model's parameters for each that is read."""
        if self._tensors is None:
            named = (*self.root.named_parameters(), *self.root.named_buffers())
            self._tensors = {id(tensor): name for name, tensor in named}
        name = self._tensors.get(id(attr_val)) if isinstance(attr_val, torch.Tensor) else None
        if name is None:
            return attr_val
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
        return parameter_proxy_cache[name]

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if m not in (self.submodule_paths or {}):  # made in a forward: torch.nn.ReLU()(x)
            return forward(*args, **kwargs)
        if self._bare and m not in self._whole and (m._forward_hooks or m._forward_pre_hooks):
            raise fx.proxy.TraceError("a hook is put on a module while the model runs")
        last, stack = next(iter(reversed(self.graph.nodes))), self.module_stack.copy()
        try:
            output = super().call_module(m, forward, args, kwargs)
        except Exception as error:  # tracing runs the user's code: anything may be raised
            self._forget_after(last)
            self.module_stack = stack
            self.kept[m] = told(error)
            output = self.create_proxy("call_module", self.path_of_module(m), args, kwargs)
        if isinstance(output, fx.Proxy):
            self.outputs.setdefault(m, []).append(output.node)
        return output

    def _forget_after(self, last: fx.Node) -> None:
        forgotten = set()
        for node in reversed(self.graph.nodes):
            if node is last:
                break
            self.graph.erase_node(node)
            forgotten.add(node)
        for module, nodes in self.outputs.items():
            self.outputs[module] = [node for node in nodes if node not in forgotten]


def trace(model: nn.Module) -> "Graph":
    """Trace ``model`` with torch.fx; raises UntraceableError with torch's reason when it cannot."""
    tracer, constants = _traced(model)
    _make_anew(tracer.graph)
    use_results(tracer.graph, model)
    vars(model).update(constants)
    try:
        return Graph(model, tracer.graph, tracer.outputs, tracer.kept)
    finally:
        for name in constants:
            del vars(model)[name]


def operations(model: nn.Module, whole: Collection[nn.Module] = ()) -> fx.Graph:
    """The operations alone, of a copy of a model; raises UntraceableError like ``trace``.

    The modules ``whole`` are one operation each. Constants of the code stay with the copy.
    """
    tracer, constants = _traced(model, whole, bare=True)
    use_results(tracer.graph, model)
    vars(model).update(constants)
    return tracer.graph


def _traced(
    model: nn.Module, whole: Collection[nn.Module] = (), bare: bool = False
) -> tuple[_Tracer, dict[str, torch.Tensor]]:
    """What was traced, and the tensors that the code made; the model is as it was."""
    check_takes_one_tensor(model)
    tracer = _Tracer(whole, bare)
    with streams_kept(), state_kept(model), uncompiled():
        try:
            graph = tracer.trace(model)
        except Exception as error:  # tracing runs the user's code: anything may be raised
            raise untraceable(model, error) from error
        made = {str(node.target): getattr(model, str(node.target)) for node in _constants(graph)}
    known: set[fx.Node] = set()
    for node in graph.nodes:
        if not known.issuperset(node.all_input_nodes):
            raise untraceable(model, "its code keeps what it computes from call to call")
        known.add(node)
    return tracer, made


def _constants(graph: fx.Graph) -> list[fx.Node]:
    """Where the tensors are read that the traced code made."""
    return [n for n in graph.nodes if n.op == "get_attr" and str(n.target).startswith(CONSTANT)]


def _make_anew(graph: fx.Graph) -> None:
    """Every pass gets constants of its own, as every call of the code makes them anew."""
    for node in _constants(graph):
        with graph.inserting_after(node):
            own = graph.call_method("clone", (node,))
        node.replace_all_uses_with(own, lambda user, own=own: user is not own)  # type: ignore[misc]


class Graph:
    """The operations of a model in order of execution; it shares the model's modules.

    Trace anew after pruning, since code that writes a width as a number is traced with that number,
    and after a change of weights, since cuts share modules that were made out of them.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: fx.Graph,
        outputs: dict[nn.Module, list[fx.Node]],
        kept: dict[nn.Module, str],
    ) -> None:
        self.module = fx.GraphModule(model, graph)
        self._names = {module: name for name, module in model.named_modules()}
        self._outputs = outputs
        self._kept = kept
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

    def check_runs(self, module: nn.Module, times: int) -> None:
        """UntraceableError unless there is a node for each of the ``times`` that a module runs."""
        if len(self.sites(module)) == times:
            return
        name = self._names[module]
        whole = (m for m in reversed(self._kept) if name.startswith(f"{self._names[m]}."))
        around = next(whole, None)
        why = "" if around is None else f", '{self._names[around]}': {self._kept[around]}"
        raise UntraceableError(f"'{name}' runs inside a module that is kept whole{why}.")

    def module_behind(self, module: nn.Module) -> nn.Module | None:
        """The module whose output is read behind ``module``; None where it is a function's."""
        runs = self.sites(module, behind=True)
        one = len(runs) == 1 and runs[0].op == "call_module"
        return self._called(runs[0]) if one else None

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
