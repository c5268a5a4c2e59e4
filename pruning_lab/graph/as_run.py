"""Whether a trace computes what the code does: the operations of both are held side by side."""

import itertools
from collections.abc import Iterable
from typing import Any

import torch
from torch import fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pruning_lab.graph.refusals import untraceable
from pruning_lab.modes import state_kept
from pruning_lab.random_streams import streams_kept

Operation = tuple[str, list[Any]]
"""What torch runs, and with which tensors and numbers."""


class _OtherwiseError(Exception):
    """The code does not run what the trace does; raised in the line of the code."""


def check_as_run(bones: nn.Module, graph: fx.Graph, x: torch.Tensor) -> None:
    """UntraceableError unless ``graph`` runs the operations that the code of ``bones`` runs.

    What is traced is no tensor: code that asks what it was given may take another way. Both run on
    shapes alone, the code with gradients and without.
    """
    traced = fx.GraphModule(bones, graph)
    for name, tensor in traced._buffers.items():  # among them constants that the code made
        traced._buffers[name] = None if tensor is None else tensor.to("meta")
    try:
        with torch.no_grad():
            expected = _operations(traced, bones, x)
            _operations(bones, bones, x, expected)
        with torch.enable_grad():
            try:
                _operations(bones, bones, x, expected)
            except _OtherwiseError:  # torch itself may choose other kernels
                _operations(bones, bones, x, _operations(traced, bones, x))
    except Exception as error:  # the user's code runs on shapes: anything may be raised
        raise untraceable(bones, error) from error


def _operations(
    run: nn.Module, bones: nn.Module, x: torch.Tensor, expected: list[Operation] | None = None
) -> list[Operation]:
    """What runs; _OtherwiseError where that is not ``expected``."""
    given = (x, *bones.parameters(), *bones.buffers())
    with streams_kept(), state_kept(bones), torch.device("meta"), _Noting(given) as noting:
        noting.expected = expected
        run(x)
    if noting.otherwise is not None:  # the code caught it
        raise noting.otherwise
    if expected is not None and len(noting.noted) < len(expected):
        raise _OtherwiseError(f"it ends where its trace runs {expected[len(noting.noted)][0]}")
    return noting.noted


class _Noting(TorchDispatchMode):
    """Notes the operations on what depends on the ``given`` tensors, and their order.

    Tensors are known by where their numbers lie, so that views are, too. What is computed of
    constants alone is not noted: a trace has its result.
    """

    def __init__(self, given: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.noted: list[Operation] = []
        self.expected: list[Operation] | None = None
        self.otherwise: _OtherwiseError | None = None
        self._alive = list(given)  # else another tensor could lie in the place of one
        self._next = itertools.count()
        self._numbers = {_place(each): next(self._next) for each in self._alive}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        values = tree_leaves((args, kwargs))
        known = any(_place(v) in self._numbers for v in values if isinstance(v, torch.Tensor))
        if known and func is not torch.ops.aten.detach.default:  # torch's own, with gradients
            for name, arguments in _as_traced(func, values):
                operation = name, list(map(self._described, arguments))
                self._compare(operation)
                self.noted.append(operation)
        result = _run(func, args, kwargs or {})
        if known:
            self._number(result, func._schema.is_mutable)
        return result

    def _compare(self, operation: Operation) -> None:
        if self.expected is None:
            return
        place = len(self.noted)
        wanted = self.expected[place] if place < len(self.expected) else ("nothing", [])
        if operation != wanted:
            same = operation[0] == wanted[0]
            self.otherwise = _OtherwiseError(
                f"it runs {operation[0]} where its trace runs {wanted[0]}"
                + (" with other arguments" if same else "")
            )
            raise self.otherwise

    def _described(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return str(value)
        return self._numbers.get(_place(value)), tuple(value.shape), value.dtype

    def _number(self, result: Any, in_place: bool) -> None:
        """A result has a number of its own, a view that of what it shows.

        What is written to gets a new one: who reads the old values later, where they were not
        written to, has the old one.
        """
        for each in tree_leaves(result):
            if isinstance(each, torch.Tensor):
                self._alive.append(each)
                if in_place or _place(each) not in self._numbers:
                    self._numbers[_place(each)] = next(self._next)


def _as_traced(func: Any, values: list[Any]) -> list[Operation]:
    """What a trace makes of an operation.

    Of `q, k = x` two parts, and of `x += y`, in place, x = x + y: _number tells them apart.
    """
    if func is torch.ops.aten.unbind.int:
        x, dim = (*values, 0)[:2]
        return [("aten.select.int", [x, dim, part]) for part in range(x.shape[dim])]
    return [(str(func).replace("_.", "."), values)]


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if func is torch.ops.aten.native_batch_norm.default:  # torch takes 4 ms for its shapes
        return torch.empty_like(args[0]), *(args[0].new_empty(0) for _ in range(2))
    return func(*args, **kwargs)


def _place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
