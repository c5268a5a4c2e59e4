"""Run a traced model on shapes and slot numbers instead of data to find its coupled units."""

import operator
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch
from torch import fx, nn

from pruning_lab.coupling.call import Call, Findings, UnfollowedError
from pruning_lab.coupling.rules import HAVE_WIDTHS, TAKES_SIZES, rule_of
from pruning_lab.coupling.values import Extent, Value, all_of, sizes
from pruning_lab.coupling.widths import Width
from pruning_lab.graph.added_code import tensors_at

HARMLESS = ("device", "dtype", "ndim", "dim", "is_floating_point", "is_cuda", "requires_grad")
"""Attributes and methods of a tensor that do not depend on its number of units."""


def follow(graph: fx.Graph, x: torch.Tensor, findings: Findings) -> None:
    """Run ``graph``, of the model of ``findings``, on ``x`` and add the results to ``findings``."""
    env: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            env[node] = Value(x)
        elif node.op == "get_attr":  # a parameter, a buffer, or a constant of the traced code
            value = operator.attrgetter(str(node.target))(findings.model)
            env[node] = findings.labelled(value) if isinstance(value, torch.Tensor) else value
        else:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), env.__getitem__)
            if node.op != "output":
                env[node] = _followed(_call(node, args, kwargs, findings))
                continue
            for value in all_of(Value, args):
                findings.freeze(value, "the caller of the model sees its output")


def _call(node: fx.Node, args: Any, kwargs: Any, findings: Findings) -> Call:
    if node.op == "call_module":
        path = str(node.target)
        module = findings.model.get_submodule(path)
        return Call(module, args, kwargs, path, module, findings)
    stack = node.meta.get("nn_module_stack") or {}
    path = next((path for path, _ in reversed(stack.values())), "")
    owner = findings.model.get_submodule(path)
    return Call(node.target, args, kwargs, path, owner, findings)


def _followed(call: Call) -> Any:
    """Return the result of a call, as far as possible with its units."""
    target, args, rule = call.target, call.args, rule_of(call.target)
    if rule not in HAVE_WIDTHS:
        call.findings.read.update(width.key for width in all_of(Width, (args, call.kwargs)))
    if not call.values:
        return _without_tensors(call)
    name = args[1] if target is getattr else target
    if name == "shape":
        return sizes(call.x)
    if target == "size":
        shape, dim = sizes(call.x), call.argument(1, "dim")
        return shape if dim is None else shape[dim]
    if name in HARMLESS:
        return call.evaluate()
    if target is operator.getitem and not isinstance(args[0], Value):
        return args[0][args[1]]
    try:
        if target is call.owner and call.path in call.findings.added:
            raise UnfollowedError(call.findings.added[call.path])
        if rule is None:
            raise UnfollowedError(f"its units meet {call}, which cannot be followed")
        if call.extents and rule not in TAKES_SIZES:
            call.freeze_sizes(call.extents)
            call = call.with_numbers()
        return rule(call)
    except UnfollowedError as error:
        return _unknown(call, str(error))


def _without_tensors(call: Call) -> Any:
    """Compute arithmetic on sizes, tuples of sizes, and all else that involves no tensor."""
    target, args = call.target, call.args
    if target in (operator.getitem, operator.add) and isinstance(args[0], tuple):
        return target(*args)
    if target in (operator.mul, operator.floordiv):
        size, number = args
        if target is operator.mul and isinstance(number, Extent):
            size, number = number, size
        if isinstance(size, Extent) and isinstance(number, int) and number > 0:
            by = Fraction(number) if target is operator.mul else Fraction(1, number)
            if (size.value * by).denominator == 1:  # it still counts units
                return replace(size, value=int(size.value * by), factor=size.factor * by)
    call.freeze_sizes(call.extents)
    return call.result()


def _unknown(call: Call, reason: str) -> Any:
    """Freeze, for ``reason``, all units that this call touches; its result has none."""
    inside = call.owner.modules() if isinstance(call.target, nn.Module) else ()
    tensors = {id(tensor): tensor for module in inside for tensor in tensors_at(module)}
    for value in (*call.values, *map(call.findings.labelled, tensors.values())):
        call.findings.freeze(value, reason)
    call.freeze_sizes(call.extents)
    shapes = [value.shape for value in call.values]
    result = call.result()
    for value, shape in zip(call.values, shapes, strict=True):
        if value.shape != shape:  # changed in place
            value.axes.clear()
    return result
