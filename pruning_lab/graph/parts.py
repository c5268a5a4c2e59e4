"""Make parts of a traced model runnable on their own; they share its modules."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import fx


def part(
    module: fx.GraphModule,
    inputs: Sequence[fx.Node],
    wanted: Any,
    masked: dict[fx.Node, int] | None = None,
) -> fx.GraphModule:
    """Return a module of the operations that lead from ``inputs`` to ``wanted``, one or more nodes.

    ``masked`` (node -> dimension of its units) multiplies the values of these nodes by masks
    (rows, units), which the module takes, in this order, after ``inputs``.
    """
    graph = fx.Graph()
    env = {node: graph.placeholder(node.name) for node in inputs}
    masks = {node: graph.placeholder(f"{node.name}_keep") for node in masked or {}}
    needed = ancestors(_nodes_in(wanted), env)
    for node in module.graph.nodes:
        if node in needed and node not in env:
            env[node] = graph.node_copy(node, env.__getitem__)
            if node in masks:
                arguments = (env[node], masks[node], (masked or {})[node])
                env[node] = graph.call_function(masked_units, arguments)
    graph.output(fx.node.map_arg(wanted, env.__getitem__))
    return fx.GraphModule(module, graph)


def masked_units(activation: torch.Tensor, keep: torch.Tensor, axis: int) -> torch.Tensor:
    """Return the activation with units along ``axis`` at 0 where ``keep`` (rows, units) is 0."""
    shape = [1] * activation.ndim
    shape[0], shape[axis] = keep.shape
    return activation * keep.view(shape)


def graded(value: torch.Tensor) -> torch.Tensor:
    """Return the same tensor, which now requires a gradient if it can have one."""
    able = value.is_floating_point() and not value.is_inference()
    return value.requires_grad_() if able and not value.requires_grad else value


def gradients(of: torch.Tensor, wanted: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return the gradients of a scalar; 0 where none flows, for example through torch.no_grad()."""
    able = [tensor for tensor in wanted if tensor.requires_grad] if of.requires_grad else []
    computed: Sequence[torch.Tensor] = ()
    if able:
        computed = torch.autograd.grad(of, able, allow_unused=True, materialize_grads=True)
    remaining = iter(computed)
    return [
        next(remaining) if of.requires_grad and tensor.requires_grad else torch.zeros_like(tensor)
        for tensor in wanted
    ]


def _nodes_in(wanted: Any) -> list[fx.Node]:
    nodes: list[fx.Node] = []
    fx.node.map_arg(wanted, nodes.append)
    return nodes


def descendants(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """Return ``nodes`` and all nodes that depend on them."""
    return _closure(nodes, lambda node: node.users, ())


def ancestors(nodes: Iterable[fx.Node], ends: Iterable[fx.Node]) -> set[fx.Node]:
    """Return ``nodes`` and all nodes that they depend on; the search stops at ``ends``."""
    return _closure(nodes, lambda node: node.all_input_nodes, ends)


def _closure(
    nodes: Iterable[fx.Node],
    neighbours: Callable[[fx.Node], Iterable[fx.Node]],
    ends: Iterable[fx.Node],
) -> set[fx.Node]:
    """Return all nodes reached from ``nodes``; the search stops at ``ends``."""
    reached, waiting = set(nodes), [node for node in nodes if node not in ends]
    while waiting:
        for node in neighbours(waiting.pop()):
            if node not in reached:
                reached.add(node)
                if node not in ends:
                    waiting.append(node)
    return reached
