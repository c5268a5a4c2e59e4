"""Rewire a graph around in-place operations, so that parts of it can run on their own."""

import inspect
from typing import Any

from torch import fx, nn


def use_results(graph: fx.Graph, model: nn.Module) -> None:
    """Let operations after an in-place operation read its result, not the value that it changed."""
    position = {node: number for number, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        changed = _changed(node, model)
        if changed is not None:
            for user in list(changed.users):
                if position[user] > position[node]:
                    user.replace_input_with(changed, node)


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
