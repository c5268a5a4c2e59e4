"""Run a traced model on shapes and slot numbers instead of data to find its coupled units."""

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from pruning_lab.coupling.call import Call, Findings, UnfollowedError, with_axes
from pruning_lab.coupling.rules import ARITHMETIC, HAVE_WIDTHS, TAKES_SIZES, moves, rule_of
from pruning_lab.coupling.values import Value, sizes
from pruning_lab.graph.added_code import tensors_at

SIZE_ATTRIBUTES = ("shape",)
HARMLESS = ("device", "dtype", "ndim", "dim", "is_floating_point", "is_cuda", "requires_grad")
"""Attributes and methods of a tensor that do not depend on its number of units."""


def follow(
    model: nn.Module,
    graph: fx.Graph,
    x: torch.Tensor,
    findings: Findings,
    added: Mapping[str, str],
) -> None:
    """Run ``graph`` of ``model`` (a skeleton) on ``x`` and add the results to ``findings``.

    ``added`` maps the modules that run code outside the graph to the reason.
    """
    _Run(model, findings, added).run(graph, x)


class _Run:
    def __init__(self, model: nn.Module, findings: Findings, added: Mapping[str, str]) -> None:
        self.model = model
        self.findings = findings
        self.added = added
        named = [*model.named_parameters(), *model.named_buffers()]
        self.names = {id(tensor): name for name, tensor in named}

    def run(self, graph: fx.Graph, x: torch.Tensor) -> None:
        env: dict[fx.Node, Any] = {}
        for node in graph.nodes:
            if node.op == "placeholder":
                env[node] = Value(x)
            elif node.op == "get_attr":
                env[node] = self.stored(str(node.target))
            else:
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), env.__getitem__)
                if node.op == "output":
                    self.seen_by_the_caller(args)
                else:
                    env[node] = self.call(node, args, kwargs)

    def stored(self, path: str) -> Any:
        """Return a parameter, a buffer, or a constant of the traced code."""
        parent, _, name = path.rpartition(".")
        value = getattr(self.model.get_submodule(parent), name)
        return value if not isinstance(value, torch.Tensor) else self.labelled(value)

    def labelled(self, tensor: torch.Tensor) -> Value:
        name = self.names.get(id(tensor))
        if name is None:
            return Value(tensor.to("meta"))
        numbered = {d: self.findings.slots.of(name, d, n) for d, n in enumerate(tensor.shape)}
        return Value(tensor, numbered)

    def call(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        target, path = node.target, _innermost(node)
        if node.op == "call_module":
            path = str(node.target)
            target = self.model.get_submodule(path)
        owner = self.model.get_submodule(path)
        call = Call(target, args, kwargs, path, owner, self.findings, self.stored)
        rule = rule_of(target)
        if rule not in HAVE_WIDTHS:
            self.findings.passed.update(width.key for width in call.widths)
        if not call.values:
            return self.without_tensors(call)
        if target is getattr and args[1] in SIZE_ATTRIBUTES:
            return sizes(call.x)
        if target == "size":
            shape, dim = sizes(call.x), call.argument(1, "dim")
            return shape if dim is None else shape[dim]
        if target in HARMLESS or (target is getattr and args[1] in HARMLESS):
            return call.evaluate()
        if target is operator.getitem and not isinstance(args[0], Value):
            return args[0][args[1]]
        try:
            if target is owner and path in self.added:
                raise UnfollowedError(self.added[path])
            if rule is None:
                raise UnfollowedError(f"its units meet {call}, which cannot be followed")
            if call.extents and rule not in TAKES_SIZES:
                freeze_sizes(call)
                call = call.with_numbers()
            return rule(call)
        except UnfollowedError as error:
            return self.unknown(call, str(error))

    def without_tensors(self, call: Call) -> Any:
        """Compute arithmetic on sizes, tuples of sizes, and all else that involves no tensor."""
        if call.target in (operator.getitem, operator.add) and isinstance(call.args[0], tuple):
            return call.target(*call.args)
        if call.extents:
            if call.target in ARITHMETIC:
                return moves.arithmetic(call)
            freeze_sizes(call)
        return with_axes(call.evaluate(), {})

    def unknown(self, call: Call, reason: str) -> Any:
        """Freeze, for ``reason``, all units that this call touches; its result has none."""
        root = call.owner if isinstance(call.target, nn.Module) else nn.Module()
        held = (tensor for module in root.modules() for tensor in tensors_at(module))
        tensors = {id(tensor): tensor for tensor in (*root.parameters(), *root.buffers(), *held)}
        inside = map(self.labelled, tensors.values())
        for value in (*call.values, *inside):
            for numbers in value.axes.values():
                self.findings.slots.freeze(numbers, reason)
        freeze_sizes(call)
        shapes = [value.shape for value in call.values]
        result = call.evaluate()
        for value, shape in zip(call.values, shapes, strict=True):
            if value.shape != shape:  # changed in place
                value.axes.clear()
        return with_axes(result, {})

    def seen_by_the_caller(self, output: Any) -> None:
        def freeze(value: Any) -> Any:
            if isinstance(value, Value):
                for numbers in value.axes.values():
                    reason = "the caller of the model sees its output"
                    self.findings.slots.freeze(numbers, reason)
            return value

        fx.node.map_aggregate(output, freeze)


def freeze_sizes(call: Call) -> None:
    for extent in call.extents:
        call.freeze_size(extent)


def _innermost(node: fx.Node) -> str:
    """Return the path of the innermost module whose forward makes this call."""
    stack = node.meta.get("nn_module_stack") or {}
    return next((path for path, _ in reversed(stack.values())), "")
