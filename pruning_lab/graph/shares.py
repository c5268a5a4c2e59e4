"""Which share of a forward or backward pass an operation takes, by its FLOPs."""

from collections.abc import Iterable
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import fx
from torch.utils.flop_counter import FlopCounterMode

from pruning_lab.graph.counting import counting
from pruning_lab.graph.parts import descendants
from pruning_lab.random_streams import streams_kept

SHARE = "share"
"""Where nodes carry theirs, forward and backward; parts of a graph copy it with its nodes."""


class Share(NamedTuple):
    """Of one sample's passes through the whole network."""

    forward: float = 0.0
    backward: float = 0.0


@torch.no_grad()
def weigh(module: fx.GraphModule, x: torch.Tensor) -> None:
    """Give every operation its share, as measured on ``x``.

    Nothing is led back through operations that read nothing but the input: a backward pass ends at
    what the first layers give.
    """
    nodes = list(module.graph.nodes)
    with streams_kept([x.device]), counting() as counter:
        weighing = _Weighing(module, counter)
        weighing.run(x.clone())
    flops = {node: weighing.flops.get(node, 0) for node in nodes}
    first = [node for node in nodes if flops[node]]
    behind = descendants([user for node in first for user in node.users])
    whole, back = sum(flops.values()), sum(flops[node] for node in behind)
    for node in nodes:
        led_back = flops[node] if node in behind else 0
        node.meta[SHARE] = Fraction(flops[node], whole or 1), Fraction(led_back, back or 1)


def share_of(nodes: Iterable[fx.Node]) -> Share:
    """What operations take together; nothing where they were not weighed."""
    each = [node.meta[SHARE] for node in nodes if SHARE in node.meta]
    forward, backward = (sum(shares) for shares in zip(*each, strict=True)) if each else (0, 0)
    return Share(float(forward), float(backward))


class _Weighing(fx.Interpreter):
    """Runs a module and counts the FLOPs of its operations."""

    def __init__(self, module: fx.GraphModule, counter: FlopCounterMode) -> None:
        super().__init__(module)
        self.flops: dict[fx.Node, int] = {}
        self._counter = counter

    def run_node(self, n: fx.Node) -> Any:
        before = self._counter.get_total_flops()
        result = super().run_node(n)
        self.flops[n] = self._counter.get_total_flops() - before
        return result
