"""Trace a model with torch.fx: its operations, and the nodes that are outputs of its modules."""

import inspect
from collections.abc import Collection, Iterator
from functools import cached_property
from typing import Any

import torch
from torch import fx, nn

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

    A module whose forward cannot be traced becomes one operation, too; ``kept`` holds the reason by
    its name. ``constants`` are the tensors that the code makes, by the attribute that holds them.
    ``bare``: the model's hooks were removed before, so that a new one comes from its code.
    """

    def __init__(self, whole: Collection[nn.Module] = (), bare: bool = False) -> None:
        super().__init__()
        self._whole, self._bare = whole, bare
        self.outputs: dict[nn.Module, list[fx.Node]] = {}
        self.kept: dict[str, str] = {}
        self.constants: dict[str, torch.Tensor] = {}

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

    @cached_property
    def _names(self) -> dict[int, str]:
        """Names of the model's tensors by id; torch itself searches them all at every read."""
        named = (*self.root.named_parameters(), *self.root.named_buffers())
        return {id(tensor): name for name, tensor in named}

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        name = self._names.get(id(attr_val))
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
            self.kept[self.path_of_module(m)] = told(error)
            output = self.create_proxy("call_module", self.path_of_module(m), args, kwargs)
        if isinstance(output, fx.Proxy):
            self.outputs.setdefault(m, []).append(output.node)
        return output

    def _forget_after(self, last: fx.Node) -> None:
        while (node := next(iter(reversed(self.graph.nodes)))) is not last:
            self.graph.erase_node(node)
        remaining = set(self.graph.nodes)
        for module, nodes in self.outputs.items():
            self.outputs[module] = [node for node in nodes if node in remaining]


def operations(model: nn.Module, whole: Collection[nn.Module] = ()) -> fx.Graph:
    """Return the graph of a skeleton's operations; see ``traced``."""
    return traced(model, whole, bare=True).graph


def traced(model: nn.Module, whole: Collection[nn.Module] = (), bare: bool = False) -> Tracer:
    """Trace a model, which stays as it was but for the tensors that its code makes, ``constants``.

    Operations after an in-place operation read its result, not the value that it changed: parts of
    the graph can run on their own. Raises UserError if the model's forward does not take one
    tensor, UntraceableError if tracing fails.
    """
    check_takes(model, None)
    tracer = Tracer(whole, bare)
    with streams_kept(), state_kept(model), uncompiled():
        try:
            graph = tracer.trace(model)
        except Exception as error:  # tracing runs the user's code: anything may be raised
            raise untraceable(model, error) from error
        names = [str(node.target) for node in constants_of(graph)]
        tracer.constants = {name: getattr(model, name) for name in names}
    position = {node: number for number, node in enumerate(graph.nodes)}
    for node, number in position.items():
        if any(position.get(source, number) >= number for source in node.all_input_nodes):
            raise untraceable(model, "its code stores results for use in a later call")
    for node, number in position.items():
        if (changed := _changed(node, model)) is not None:
            for user in list(changed.users):
                if position[user] > number:
                    user.replace_input_with(changed, node)
    vars(model).update(tracer.constants)
    return tracer


def constants_of(graph: fx.Graph) -> list[fx.Node]:
    """Return the nodes that read tensors which the traced code makes."""
    return [n for n in graph.nodes if n.op == "get_attr" and str(n.target).startswith(CONSTANT)]


def _changed(node: fx.Node, model: nn.Module) -> fx.Node | None:
    """Return the node whose value this operation changes in place, or None."""
    if node.op == "call_module":
        in_place = getattr(model.get_submodule(str(node.target)), "inplace", False)
    elif node.op in ("call_method", "call_function"):
        name = getattr(node.target, "__name__", str(node.target))
        plain = name.endswith("__") or getattr(node.target, "__module__", "") == "_operator"  # and_
        in_place = (name.endswith("_") and not plain) or _argument(node, "inplace")
    else:
        return None
    first = next(iter([*node.args, *node.kwargs.values()]), None)
    return first if in_place is True and isinstance(first, fx.Node) else None


def _argument(node: fx.Node, name: str) -> Any:
    """Return an argument by name, passed by position or by keyword; None if there is none."""
    if name in node.kwargs or not callable(node.target):
        return node.kwargs.get(name)
    try:
        return inspect.signature(node.target).bind(*node.args, **node.kwargs).arguments.get(name)
    except (TypeError, ValueError):  # torch's built-in functions have no signature
        return None
