"""Pieces of a traced model as models of their own; they share its modules."""

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
    """The operations that lead from ``inputs`` to ``wanted``, a node or several.

    With ``masked`` (node -> dimension of the units) these values are put to 0 where the mask, which
    is one more input for each, says so.
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
    """The activation with the units at 0 that ``keep`` (rows, units) does not keep."""
    shape = [1] * activation.ndim
    shape[0], shape[axis] = keep.shape
    return activation * keep.view(shape)


def graded(value: torch.Tensor) -> torch.Tensor:
    """The same tensor, so that a gradient can be led to it, where there can be one at all."""
    able = value.is_floating_point() and not value.is_inference()
    return value.requires_grad_() if able and not value.requires_grad else value


def gradients(of: torch.Tensor, wanted: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The gradients of a number; 0 where none leads: behind torch.no_grad(), for example."""
    able = [each for each in wanted if each.requires_grad] if of.requires_grad else []
    led: Sequence[torch.Tensor] = ()
    if able:
        led = torch.autograd.grad(of, able, allow_unused=True, materialize_grads=True)
    found = iter(led)
    return [
        next(found) if of.requires_grad and each.requires_grad else torch.zeros_like(each)
        for each in wanted
    ]


def _nodes_in(wanted: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.node.map_arg(wanted, found.append)
    return found


def descendants(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    return _closure(nodes, lambda node: node.users, ())


def ancestors(nodes: Iterable[fx.Node], ends: Iterable[fx.Node]) -> set[fx.Node]:
    return _closure(nodes, lambda node: node.all_input_nodes, ends)


def _closure(
    nodes: Iterable[fx.Node],
    neighbours: Callable[[fx.Node], Iterable[fx.Node]],
    ends: Iterable[fx.Node],
) -> set[fx.Node]:
    """All that is reached from ``nodes``; ``ends`` are not passed."""
    found, waiting = set(nodes), [node for node in nodes if node not in ends]
    while waiting:
        for node in neighbours(waiting.pop()):
            if node not in found:
                found.add(node)
                if node not in ends:
                    waiting.append(node)
    return found
