"""Shares of operations in a forward or backward pass, by their FLOPs."""

from collections.abc import Iterable
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import fx
from torch.utils.flop_counter import FlopCounterMode

from pruning_lab.graph.parts import descendants
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
    nodes = list(module.graph.nodes)
    with streams_kept([x.device]), counting() as counter:
        weighing = _Weighing(module, counter)
        weighing.run(x.clone())
    flops = {node: weighing.flops.get(node, 0) for node in nodes}
    first = [node for node in nodes if flops[node]]
    later = descendants([user for node in first for user in node.users])
    forward, backward = sum(flops.values()), sum(flops[node] for node in later)
    for node in nodes:
        led_back = flops[node] if node in later else 0
        node.meta[SHARE] = Fraction(flops[node], forward or 1), Fraction(led_back, backward or 1)


def share_of(nodes: Iterable[fx.Node]) -> Share:
    """Return the sum of the operations' shares; 0 for those that were not weighed."""
    pairs = [node.meta[SHARE] for node in nodes if SHARE in node.meta]
    forward, backward = (sum(shares) for shares in zip(*pairs, strict=True)) if pairs else (0, 0)
    return Share(float(forward), float(backward))


class _Weighing(fx.Interpreter):
    """Run a module and count the FLOPs of each operation."""

    def __init__(self, module: fx.GraphModule, counter: FlopCounterMode) -> None:
        super().__init__(module)
        self.flops: dict[fx.Node, int] = {}
        self._counter = counter

    def run_node(self, n: fx.Node) -> Any:
        before = self._counter.get_total_flops()
        result = super().run_node(n)
        self.flops[n] = self._counter.get_total_flops() - before
        return result
