"""Operations that change a tensor in place, in a graph whose parts are to run by themselves."""

import inspect
from typing import Any

from torch import fx, nn


def use_results(graph: fx.Graph, model: nn.Module) -> None:
    """Let what follows an in-place operation read its result, not the value that it changed."""
    place = {node: number for number, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        changed = _changed(node, model)
        if changed is not None:
            for user in list(changed.users):
                if place[user] > place[node]:
                    user.replace_input_with(changed, node)


def _changed(node: fx.Node, model: nn.Module) -> fx.Node | None:
    """The value that the operation changes in place."""
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
    """An argument of a function by name, however it is given; None when it has none."""
    if name in node.kwargs or not callable(node.target):
        return node.kwargs.get(name)
    try:
        return inspect.signature(node.target).bind(*node.args, **node.kwargs).arguments.get(name)
    except (TypeError, ValueError):  # torch's own functions tell nothing of their arguments
        return None
