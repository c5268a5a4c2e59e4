"""Compare the operations of a model with those of its trace, and with those of its pruned copy."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.fx.immutable_collections import immutable_dict, immutable_list
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from pruning_lab.graph.refusals import untraceable
from pruning_lab.runtime.model_state import state_kept
from pruning_lab.runtime.random_streams import streams_kept

Operation = tuple[str, list[Any]]
"""Name of a torch operation, and its arguments: tensors by description, numbers as they are."""

BY_LAYOUT = {
    f"aten.{name}"
    for name in (
        "view.default", "_unsafe_view.default", "clone.default", "expand.default", "t.default",
        "mm.default", "bmm.default", "addmm.default", "baddbmm.default", "add.Tensor",
    )
}  # fmt: skip
"""Operations that torch chooses by strides and sizes: products, biases, copies before a view."""


class _Running(fx.Interpreter):
    """Interpreter that passes the lists and dictionaries of a graph as modifiable copies."""

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> tuple[Any, Any]:
        args, kwargs = super().fetch_args_kwargs_from_env(n)
        return tuple(map(_mutable, args)), {key: _mutable(value) for key, value in kwargs.items()}


def _mutable(value: Any) -> Any:
    if isinstance(value, immutable_list):
        return list(map(_mutable, value))
    if isinstance(value, immutable_dict):
        return {key: _mutable(item) for key, item in value.items()}
    return value


class _OtherwiseError(Exception):
    """An operation differs from the expected one; raised at the line of the model that runs it."""


def check_as_run(bones: nn.Module, graph: fx.Graph, x: torch.Tensor) -> None:
    """Raise UntraceableError unless ``graph`` and the skeleton ``bones`` run the same operations.

    Traced code sees a symbol instead of a tensor and may branch differently. Both run on meta
    tensors: in train mode with gradients, in eval mode with gradients and without.
    """
    traced = _Running(bones, graph=graph).run
    try:
        with torch.set_grad_enabled(bones.training):
            expected = _noted(traced, bones, x)
            _noted(bones, bones, x, expected)
        if bones.training:
            return
        with torch.enable_grad():
            try:
                _noted(bones, bones, x, expected)
            except _OtherwiseError:  # torch itself may choose other kernels
                _noted(bones, bones, x, _noted(traced, bones, x))
    except Exception as error:  # the user's code runs on shapes: anything may be raised
        raise untraceable(bones, error) from error


def check_after_cut(bones: nn.Module, cut: nn.Module, x: torch.Tensor) -> None:
    """Raise UntraceableError unless ``cut`` runs the same operations as ``bones``.

    ``cut`` is a copy of ``bones`` with some units removed. Sizes may differ. Numbers used in
    arithmetic must not: if they do, the code calculates with the number of units.
    """
    with torch.no_grad():
        expected = _noted(bones, bones, x, sizes=False)
        try:
            _noted(cut, cut, x, expected, sizes=False)
        except Exception as error:  # the user's code may raise anything
            raise untraceable(bones, error) from error


def _noted(
    run: Callable[[torch.Tensor], object],
    bones: nn.Module,
    x: torch.Tensor,
    expected: list[Operation] | None = None,
    sizes: bool = True,
) -> list[Operation]:
    """Run and return the operations; raise _OtherwiseError if they differ from ``expected``."""
    noting = _Noting(x, bones, expected, sizes)
    with streams_kept(), state_kept(bones), noting:
        run(x)
    if noting.otherwise is not None:  # the model's code caught it
        raise noting.otherwise
    if expected is not None and len(noting.noted) < len(expected):
        raise noting.error("ends", expected[len(noting.noted)])
    return noting.noted


class _Noting(TorchDispatchMode):
    """Record, in order, the operations on tensors that depend on the input ``x``.

    Tensors are identified by their storage, so that a view counts as its base tensor. A tensor
    that depends on ``x`` is named by a number, a parameter or buffer by its name, and a tensor
    computed from parameters alone by a hash of that computation. All others are constants.
    """

    def __init__(
        self, x: torch.Tensor, bones: nn.Module, expected: list[Operation] | None, sizes: bool
    ) -> None:
        super().__init__()
        self.noted: list[Operation] = []
        self.otherwise: _OtherwiseError | None = None
        self._expected, self._sizes = expected, sizes
        named = dict([*bones.named_parameters(), *bones.named_buffers()])
        self._alive = [x, *named.values()]  # keeps their storage from being reused
        self._next = itertools.count()
        self._names: dict[int, Any] = {_place(tensor): name for name, tensor in named.items()}
        self._names[_place(x)] = next(self._next)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        values = tree_leaves((_numbers(func, args), kwargs))
        tensors = [value for value in values if isinstance(value, torch.Tensor)]
        known = [self._names.get(_place(tensor)) for tensor in tensors]
        operations = [
            (name, list(map(self._described, arguments)))
            for name, arguments in _as_traced(func, values)
        ]
        flows = any(isinstance(name, int) for name in known)
        if flows and func is not torch.ops.aten.detach.default:  # autograd calls it itself
            for operation in operations:
                self._note(*operation)
        if len({tensor.is_meta for tensor in tensors}) > 1:
            args, kwargs = tree_map_only(torch.Tensor, lambda t: t.to("meta"), (args, kwargs))
        result = _run(func, args, kwargs)
        if flows:
            self._name(result, func, lambda: next(self._next))
        elif any(name is not None for name in known):
            self._name(result, func, lambda: str(hash(str(operations))))
        return result

    def _note(self, name: str, arguments: list[Any]) -> None:
        """Record an operation; without sizes only its name and its numbers for arithmetic."""
        if not self._sizes:
            arguments = [value for value in arguments if isinstance(value, float | bool)]
            if name in BY_LAYOUT and not arguments:
                return
        operation = name, arguments
        if self._expected is not None:
            position = len(self.noted)
            more = position < len(self._expected)
            wanted = self._expected[position] if more else ("nothing", [])
            if operation != wanted:
                self.otherwise = self.error(f"runs {name}", wanted, name == wanted[0])
                raise self.otherwise
        self.noted.append(operation)

    def error(self, does: str, wanted: Operation, same: bool = False) -> _OtherwiseError:
        """Return the error for another operation, or for the ``same`` with other arguments."""
        it, usual = "it", "its trace"
        if not self._sizes:
            it, usual = "with fewer units it", "the full model"
        where = f"with other arguments than {usual}"
        return _OtherwiseError(
            f"{it} {does} " + (where if same else f"where {usual} runs {wanted[0]}")
        )

    def _described(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value if isinstance(value, int | float | str | None) else str(value)
        name = self._names.get(_place(value))
        layout = None if name is None else (value.stride(), value.storage_offset())
        return name, tuple(value.shape), layout, value.dtype

    def _name(self, result: Any, func: Any, new: Callable[[], int | str]) -> None:
        """Name the tensors in ``result``: views keep their storage's name, others get a new one.

        A tensor that was modified in place gets a new name as well, so that reads of its old and
        of its new values differ.
        """
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                self._alive.append(value)
                if func._schema.is_mutable or _place(value) not in self._names:
                    self._names[_place(value)] = new()


def _as_traced(func: Any, values: list[Any]) -> Iterator[tuple[str, list[Any]]]:
    """Yield an operation in the form in which torch.fx traces it.

    `q, k = x` is traced as two selections, and `x += y` as `x = x + y`.
    """
    if func is torch.ops.aten.unbind.int:
        x, dim = (*values, 0)[:2]
        yield from (("aten.select.int", [x, dim, index]) for index in range(x.shape[dim]))
    else:
        yield str(func).replace("_.", "."), values


def _numbers(func: Any, args: Sequence[Any]) -> list[Any]:
    """Return the arguments, with integers that are used in arithmetic (no sizes) as floats."""
    return [
        float(value) if type(value) is int and str(kind.type) in ("Tensor", "number") else value
        for value, kind in zip(args, func._schema.arguments, strict=False)
    ]


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if func is torch.ops.aten.native_batch_norm.default:  # torch needs 4 ms to infer its shapes
        return torch.empty_like(args[0]), *(args[0].new_empty(0) for _ in range(2))
    return func(*args, **kwargs)


def _place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
