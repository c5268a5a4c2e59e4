"""A traced model run on shapes and numbers instead of data: which units go together comes out."""

import copy
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from pruning_lab.graph.added_code import PLAIN_TENSORS, is_compiled, tensors_at
from pruning_lab.graph.call import Call, Findings, UnfollowedError, with_axes
from pruning_lab.graph.rules import ARITHMETIC, HAVE_WIDTHS, TAKES_SIZES, moves, rule_of
from pruning_lab.graph.trace import untraceable
from pruning_lab.graph.values import Value, sizes

SIZE_ATTRIBUTES = ("shape",)
HARMLESS = ("device", "dtype", "ndim", "dim", "is_floating_point", "is_cuda", "requires_grad")
"""Questions about a tensor whose answers do not depend on how many units it has."""


def skeleton(model: nn.Module) -> nn.Module:
    """A copy of a model that has shapes but holds no numbers, and no code that was added to it.

    Raises UntraceableError for a model that cannot be copied.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for each in (*module._parameters.values(), *module._buffers.values()):
            if each is not None:
                memo[id(each)] = _empty(each)
        for name, each in vars(module).items():
            if isinstance(each, torch.Tensor):
                memo[id(each)] = each.detach().to("meta")
            if name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called")):
                memo[id(each)] = type(each)()
    try:
        bones = copy.deepcopy(model, memo)
    except Exception as error:  # what the user's modules hold may refuse to be copied
        raise untraceable(model, f"it cannot be copied, {error}") from error
    for module in bones.modules():
        if is_compiled(module):
            vars(module)["forward"] = module._orig_mod
            continue
        forward = vars(module).get("forward")
        if getattr(forward, "__self__", None) is not module:
            vars(module).pop("forward", None)
    return bones


def _empty(tensor: torch.Tensor) -> torch.Tensor:
    """A parameter or buffer of the same shape, without data."""
    if type(tensor) in PLAIN_TENSORS:
        empty = tensor.detach().to("meta")
    else:
        with torch._C.DisableTorchFunction():
            empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, tensor.requires_grad)
    return empty


def follow(
    model: nn.Module,
    graph: fx.Graph,
    x: torch.Tensor,
    findings: Findings,
    added: Mapping[str, str],
) -> None:
    """Run ``graph`` of ``model`` (a skeleton) on ``x`` and add to ``findings``.

    ``added`` says of which modules the code is not all in the graph, and why.
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
        """A parameter, a buffer, or a constant of the traced code."""
        parent, _, name = path.rpartition(".")
        found = getattr(self.model.get_submodule(parent), name)
        return found if not isinstance(found, torch.Tensor) else self.labelled(found)

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
            every, dim = sizes(call.x), call.argument(1, "dim")
            return every if dim is None else every[dim]
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
        """Arithmetic on sizes, tuples of sizes, and whatever else the code computes."""
        if call.target in (operator.getitem, operator.add) and isinstance(call.args[0], tuple):
            return call.target(*call.args)
        if call.extents:
            if call.target in ARITHMETIC:
                return moves.arithmetic(call)
            freeze_sizes(call)
        return with_axes(call.evaluate(), {})

    def unknown(self, call: Call, reason: str) -> Any:
        """Nothing that touches this call can go."""
        own = call.owner if isinstance(call.target, nn.Module) else nn.Module()
        held = (each for module in own.modules() for each in tensors_at(module))
        tensors = {id(each): each for each in (*own.parameters(), *own.buffers(), *held)}
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
        def freeze(each: Any) -> Any:
            if isinstance(each, Value):
                for numbers in each.axes.values():
                    reason = "the caller of the model sees its output"
                    self.findings.slots.freeze(numbers, reason)
            return each

        fx.node.map_aggregate(output, freeze)


def freeze_sizes(call: Call) -> None:
    for extent in call.extents:
        call.freeze_size(extent)


def _innermost(node: fx.Node) -> str:
    """The module whose forward makes this call."""
    stack = node.meta.get("nn_module_stack") or {}
    return next((path for path, _ in reversed(stack.values())), "")
