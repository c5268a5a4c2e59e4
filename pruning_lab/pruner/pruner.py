"""A plan carried out in place: tensors are sliced, followers and the optimizer follow."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from pruning_lab.errors import UserError
from pruning_lab.graph import Follower, Graph, trace
from pruning_lab.graph.kinds import LAYERS, BatchNorm, Dropout, inputs_of, units_of
from pruning_lab.pruner.optimizer import check_optimizer, slice_state
from pruning_lab.pruner.slicing import (
    Change,
    Slice,
    change_of,
    check_sliceable,
    kept,
    rescaled_dropout,
    slices_of,
)


class Pruner:
    """Removes units of a model for good, layer by layer.

    Parameters stay the same objects; gradients and the optimizer's state are sliced with them. A
    refused call (UserError) changes nothing. ``input_size`` and ``device`` belong to the seed's
    signature: followers are found by tracing, without running the model, wherever it lies.

    ``kept`` is the recipe so far: for every pruned layer the original numbers of its units.
    """

    def __init__(
        self,
        model: nn.Module,
        input_size: Sequence[int],
        device: torch.device | str,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        self.model = model
        self.input_size = tuple(input_size)
        self.device = torch.device(device)
        self.optimizer = optimizer
        self.kept: dict[str, list[int]] = {}
        self._graph: Graph | None = None

    def prune_model(
        self,
        module: nn.Module,
        indices: Any,
        cascading_modules: Iterable[nn.Module] | None = None,
    ) -> None:
        """Remove units of ``module``, and what followed them in the model.

        The followers are found by tracing; ``cascading_modules`` names them instead, for a model
        that cannot be traced. Dropout rates fall with the share of units that went.
        """
        name = self._layer_name(module)
        width = units_of(module)
        keep = kept(f"Layer '{name}'", indices, width)
        followers = (
            self._traced().followers(module)
            if cascading_modules is None
            else [self._given_follower(name, width, follower) for follower in cascading_modules]
        )
        slices, changes = self._outgoing(module, keep)
        for follower in followers:
            more, others = self._incoming(follower.module, keep, width, follower.positions)
            slices, changes = slices + more, changes + others
        if len(keep) == width:
            return
        self._carry_out(slices, changes)
        original = self.kept.get(name, list(range(width)))
        self.kept[name] = [original[unit] for unit in keep.tolist()]

    def prune_module(
        self,
        module: nn.Module,
        indices: Any,
        direction: str = "out",
        original_len: int | None = None,
    ) -> None:
        """Remove outputs (or, with ``direction="in"``, inputs) of one module by itself.

        ``original_len`` is how many units the indices count among: needed for Dropout, which has
        no width of its own; for others it says that each unit owns a block of inputs.
        """
        if direction not in ("in", "out"):
            raise UserError(f"direction={direction!r} is not known; it is 'in' or 'out'.")
        kind = type(module).__name__
        if direction == "out":
            self._layer_name(module)
            self._carry_out(*self._outgoing(module, kept(kind, indices, units_of(module))))
            return
        if isinstance(module, Dropout) and original_len is None:
            raise UserError(f"{kind} has no width: original_len must say how many units it had.")
        if not isinstance(module, (*LAYERS, BatchNorm, Dropout)):
            raise UserError(f"{kind} has no inputs that can be removed.")
        width = original_len or inputs_of(module)
        follower = self._given_follower(kind, width, module)
        keep = kept(kind, indices, width)
        self._carry_out(*self._incoming(module, keep, width, follower.positions))

    def prune_parameter(
        self, module: nn.Module, parameter_name: str, indices: Any, axis: int = 0
    ) -> None:
        """Remove ``indices`` of one parameter or buffer along ``axis``; None stays None."""
        tensor = getattr(module, parameter_name)
        if tensor is not None:
            what = f"{type(module).__name__}.{parameter_name}, axis {axis},"
            keep = kept(what, indices, tensor.shape[axis])
            self._carry_out([Slice(module, parameter_name, axis, keep)], [])

    def _traced(self) -> Graph:
        """Slicing does not change which operations run, so one trace serves all calls."""
        if self._graph is None:
            self._graph = trace(self.model)
        return self._graph

    def _layer_name(self, module: nn.Module) -> str:
        names = {each: name for name, each in self.model.named_modules()}
        if module not in names:
            raise UserError(f"This {type(module).__name__} is not part of the model: {module}.")
        if not isinstance(module, LAYERS):
            raise UserError(
                f"{type(module).__name__} ('{names[module]}') has no units that can be removed; "
                "only Linear and convolution layers have."
            )
        if getattr(module, "groups", 1) > 1:
            raise UserError(f"Layer '{names[module]}' is a grouped convolution: left alone.")
        return names[module]

    def _given_follower(self, name: str, width: int, module: nn.Module) -> Follower:
        kind = type(module).__name__
        if isinstance(module, Dropout):
            return Follower(module, kind, 1)
        if not isinstance(module, (*LAYERS, BatchNorm)) or getattr(module, "groups", 1) > 1:
            raise UserError(
                f"{kind} cannot follow '{name}'; a BatchNorm, Dropout, Linear or an ungrouped "
                "convolution can."
            )
        positions, rest = divmod(inputs_of(module), width)
        if rest or not positions:
            raise UserError(
                f"{kind} has {inputs_of(module)} inputs, not a multiple of the {width} units of "
                f"'{name}'."
            )
        return Follower(module, kind, positions)

    def _outgoing(self, module: nn.Module, keep: torch.Tensor) -> tuple[list[Slice], list[Change]]:
        return slices_of(module, "out", keep), [change_of(module, "out", len(keep))]

    def _incoming(
        self, module: nn.Module, keep: torch.Tensor, width: int, positions: int
    ) -> tuple[list[Slice], list[Change]]:
        if isinstance(module, Dropout):
            return [], [rescaled_dropout(module, width - len(keep), width)]
        blocks = (keep[:, None] * positions + torch.arange(positions)).flatten()
        return slices_of(module, "in", blocks), [change_of(module, "in", len(blocks))]

    def _carry_out(self, slices: list[Slice], changes: list[Change]) -> None:
        check_optimizer(self.optimizer)
        check_sliceable(self.model, slices)
        with torch.no_grad():
            for part in slices:
                self._slice(part)
        for change in changes:
            setattr(change.module, change.name, change.value)

    def _slice(self, part: Slice) -> None:
        tensor = getattr(part.module, part.name)
        keep, shape = part.keep.to(tensor.device), tensor.shape
        smaller = tensor.detach().index_select(part.axis, keep)
        if not isinstance(tensor, nn.Parameter):
            setattr(part.module, part.name, smaller)
            return
        gradient, tensor.grad = tensor.grad, None
        # An old loss may keep alive the node that receives this parameter's gradients, and that
        # node remembers the old shape. torch makes a new one only when the type changes.
        other = torch.float32 if tensor.dtype == torch.float64 else torch.float64
        tensor.data = torch.empty(0, dtype=other, device=tensor.device)
        tensor.data = smaller
        if gradient is not None:
            tensor.grad = gradient.index_select(part.axis, keep)
        slice_state(self.optimizer, tensor, shape, part.axis, keep)
