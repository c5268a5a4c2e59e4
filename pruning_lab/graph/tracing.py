"""Trace a model with torch.fx: its operations, and the nodes that are outputs of its modules."""

from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import fx, nn

from pruning_lab.graph.in_place import use_results
from pruning_lab.graph.refusals import check_takes, told, untraceable
from pruning_lab.runtime.model_state import state_kept, uncompiled
from pruning_lab.runtime.random_streams import streams_kept

CONSTANT = "_tensor_constant"
"""Prefix of the model's attributes where torch.fx stores tensors that the traced code makes."""


class _Proxy(fx.Proxy):
    def __len__(self) -> int:
        raise fx.proxy.TraceError("len() of a tensor is not traced; write .shape[0]")


class Tracer(fx.Tracer):
    """Trace into all modules but torch's own and ``whole``; ``outputs`` are the modules' nodes.

    A module whose forward cannot be traced becomes one operation, too; ``kept`` holds the reason.
    ``bare``: the model's hooks were removed before, so that a new one comes from its code.
    """

    def __init__(self, whole: Collection[nn.Module] = (), bare: bool = False) -> None:
        super().__init__()
        self._whole, self._bare = whole, bare
        self._tensors: dict[int, str] | None = None  # by id, once the model is known
        self.outputs: dict[nn.Module, list[fx.Node]] = {}
        self.kept: dict[nn.Module, str] = {}

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        """Call the model with one tensor, as its users do; Python fills in the defaults."""
        x = self.create_proxy("placeholder", "x", (), {})
        return (lambda root, x: root.forward(x)), [self.root, x]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m in self._whole or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        raise fx.proxy.TraceError(
            "the code branches on the data, or on its size or type, which are unknown while tracing"
        )

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        raise fx.proxy.TraceError(
            "the code iterates over a shape or a result of unknown length; unpack it into a fixed "
            "number of names instead (n, c, h, w = x.shape)"
        )

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Do the same as torch, which searches all the model's parameters at every read."""
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
            raise fx.proxy.TraceError("the code adds a hook to a module while the model runs")
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
        erased = set()
        for node in reversed(self.graph.nodes):
            if node is last:
                break
            self.graph.erase_node(node)
            erased.add(node)
        for module, nodes in self.outputs.items():
            self.outputs[module] = [node for node in nodes if node not in erased]


def operations(model: nn.Module, whole: Collection[nn.Module] = ()) -> fx.Graph:
    """Return the graph of a skeleton's operations; raise UntraceableError as ``traced`` does.

    The modules ``whole`` are one operation each. Tensors that the code makes stay in ``model``.
    """
    tracer, constants = traced(model, whole, bare=True)
    use_results(tracer.graph, model)
    vars(model).update(constants)
    return tracer.graph


def traced(
    model: nn.Module, whole: Collection[nn.Module] = (), bare: bool = False
) -> tuple[Tracer, dict[str, torch.Tensor]]:
    """Trace a model, which stays as it was; return the tracer and the tensors that its code makes.

    Raises UserError if its forward does not take one tensor, UntraceableError if tracing fails.
    """
    check_takes(model, None)
    tracer = Tracer(whole, bare)
    with streams_kept(), state_kept(model), uncompiled():
        try:
            graph = tracer.trace(model)
        except Exception as error:  # tracing runs the user's code: anything may be raised
            raise untraceable(model, error) from error
        made = {str(node.target): getattr(model, str(node.target)) for node in constants_of(graph)}
    known: set[fx.Node] = set()
    for node in graph.nodes:
        if not known.issuperset(node.all_input_nodes):
            raise untraceable(model, "its code stores results for use in a later call")
        known.add(node)
    return tracer, made


def constants_of(graph: fx.Graph) -> list[fx.Node]:
    """Return the nodes that read tensors which the traced code makes."""
    return [n for n in graph.nodes if n.op == "get_attr" and str(n.target).startswith(CONSTANT)]
