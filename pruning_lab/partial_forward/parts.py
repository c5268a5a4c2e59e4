"""Parts of a traced model, which share its modules, and their shares of a pass, by their FLOPs."""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import fx

from pruning_lab.profiling.flops import counting
from pruning_lab.runtime.random_streams import streams_kept

SHARE = "share"
"""Key of a node's (forward, backward) share in its meta, which parts of a graph copy with it."""


class Share(NamedTuple):
    """Share of one sample's forward and backward pass through the whole network, 0 to 1."""

    forward: float = 0.0
    backward: float = 0.0


@torch.no_grad()
def weigh(module: fx.GraphModule, x: torch.Tensor) -> None:
    """Store every operation's share, as measured on ``x``, in the meta of its node.

    A backward pass ends at the outputs of the first layers: operations that read only the input
    have no share of it.
    """
    flops: dict[fx.Node, int] = {}
    interpreter = fx.Interpreter(module)
    interpreter.env, interpreter.args_iter = {}, iter((x.clone(),))
    with streams_kept([x.device]), counting() as counter:
        for node in module.graph.nodes:
            before = counter.get_total_flops()
            interpreter.env[node] = interpreter.run_node(node)
            flops[node] = counter.get_total_flops() - before
    later = descendants(user for node, count in flops.items() if count for user in node.users)
    forward, backward = sum(flops.values()), sum(flops[node] for node in later)
    for node, count in flops.items():
        led_back = count if node in later else 0
        node.meta[SHARE] = Fraction(count, forward or 1), Fraction(led_back, backward or 1)


def share_of(nodes: Iterable[fx.Node]) -> Share:
    """Return the sum of the operations' shares; 0 for those that were not weighed."""
    pairs = [node.meta.get(SHARE, (0, 0)) for node in nodes]
    return Share(*(float(sum(pair[way] for pair in pairs)) for way in (0, 1)))


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
    graph, masked = fx.Graph(), masked or {}
    env = {node: graph.placeholder(node.name) for node in inputs}
    masks = {node: graph.placeholder(f"{node.name}_keep") for node in masked}
    needed: set[fx.Node] = set()
    fx.node.map_arg(wanted, needed.add)
    for node in reversed(module.graph.nodes):
        if node in needed and node not in env:
            needed.update(node.all_input_nodes)
    for node in module.graph.nodes:
        if node in needed and node not in env:
            env[node] = graph.node_copy(node, env.__getitem__)
            if node in masks:
                arguments = (env[node], masks[node], masked[node])
                env[node] = graph.call_function(masked_units, arguments)
    graph.output(fx.node.map_arg(wanted, env.__getitem__))
    return fx.GraphModule(module, graph)


def masked_units(activation: torch.Tensor, keep: torch.Tensor, axis: int) -> torch.Tensor:
    """Return the activation with units along ``axis`` at 0 where ``keep`` (rows, units) is 0."""
    shape = [1] * activation.ndim
    shape[0], shape[axis] = keep.shape
    return activation * keep.view(shape)


def descendants(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """Return ``nodes`` and all nodes that depend on them."""
    reached = set(nodes)
    waiting = list(reached)
    while waiting:
        users = waiting.pop().users.keys() - reached
        reached |= users
        waiting += users
    return reached


def called(module: fx.GraphModule, node: fx.Node) -> Any:
    """Return what a node of ``module`` calls: a module, a function, or a method's name."""
    return module.get_submodule(str(node.target)) if node.op == "call_module" else node.target


def gradients(of: torch.Tensor, wanted: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return the gradients of a scalar; 0 where none flows, for example through torch.no_grad()."""
    able = [tensor for tensor in wanted if tensor.requires_grad] if of.requires_grad else []
    computed: Sequence[torch.Tensor] = ()
    if able:
        computed = torch.autograd.grad(of, able, allow_unused=True, materialize_grads=True)
    gradient = dict(zip(able, computed, strict=True))
    return [gradient[t] if t in gradient else torch.zeros_like(t) for t in wanted]
