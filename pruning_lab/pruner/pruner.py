"""Remove units from a model in place, with all tensors and optimizer state that depend on them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from pruning_lab.coupling.structure import Structure, find_structure
from pruning_lab.errors import UserError
from pruning_lab.graph.added_code import added_code
from pruning_lab.graph.kinds import LAYERS, BatchNorm, Dropout, inputs_of, units_of
from pruning_lab.graph.refusals import check_initialised
from pruning_lab.pruner.cut import carry_out, remove
from pruning_lab.pruner.removal import check_units, classes_of, classes_of_plan
from pruning_lab.pruner.slicing import (
    Change,
    Follower,
    Slice,
    change_of,
    check_slices,
    check_stored,
    chosen,
    kept,
    rescaled_dropout,
    slices_of,
)
from pruning_lab.pruner.trial import check_cut

PLAIN = (bool, int, float, str, type(None), tuple)
"""Types of attributes on which a forward method may branch."""


class Pruner:
    """Remove units of a model for good.

    Parameters stay the same objects; gradients and the optimizer's state are sliced with them. A
    refused call (UserError) changes nothing. ``input_size`` is the shape of one sample; ``device``
    is part of the seed's signature and not used: the structure is found without running the model.
    ``structure`` is that of the model, if known, for example from a copy. Without
    ``rescale_dropout`` Dropout rates are not changed.

    ``kept`` is the recipe so far: for each pruned layer the original numbers of remaining units.
    """

    def __init__(
        self,
        model: nn.Module,
        input_size: Sequence[int],
        device: torch.device | str,
        optimizer: torch.optim.Optimizer | None = None,
        structure: Structure | None = None,
        rescale_dropout: bool = True,
    ) -> None:
        self.model = model
        self.input_size = tuple(input_size)
        self.device = torch.device(device)
        self.optimizer = optimizer
        self.rescale_dropout = rescale_dropout
        self.kept: dict[str, list[int]] = {}
        self._structure = structure
        check_initialised(model)
        self._seen = self._fingerprint()

    @property
    def structure(self) -> Structure:
        """Coupled units of the model in its present state, and units that cannot be removed.

        Found by tracing, once: each removal derives the new structure from the old one. Raises
        UntraceableError (a UserError) for a model that cannot be traced.
        """
        if self._structure is None or self._seen != self._fingerprint():
            structure = find_structure(self.model, self.input_size)
            check_cut(self.model, structure, self.input_size)
            self._keep(structure)
        assert self._structure is not None
        return self._structure

    def prune_model(
        self,
        module: nn.Module,
        indices: Any,
        cascading_modules: Iterable[nn.Module] | None = None,
    ) -> None:
        """Remove units ``indices`` of ``module``, units coupled to them, and inputs that read them.

        The coupled units (in a residual network, of several layers) and the readers are found by
        tracing. ``cascading_modules`` names the readers instead, for a model that cannot be traced.
        Dropout rates fall by the share of units removed.
        """
        if cascading_modules is not None:
            self._prune_by_hand(module, indices, cascading_modules)
            return
        name = self._name(module)
        structure = self.structure
        check_units(name, module, structure)
        units = chosen(f"layer '{name}'", indices, len(structure.units[name]))
        self._remove(structure, classes_of(structure, name, units))

    def prune_groups(self, plan: Mapping[str, Any]) -> None:
        """Remove unit groups at once; ``plan`` maps coupled layers to numbers of unit groups.

        Names and numbers are those of ``structure.groups`` before the call.
        """
        structure = self.structure
        self._remove(structure, classes_of_plan(structure, plan))

    def _remove(self, structure: Structure, classes: torch.Tensor) -> None:
        remove(self.model, structure, classes, self.optimizer, self.rescale_dropout)
        stays = ~structure.marked(classes)
        for layer, row in structure.units.items():
            self._remember(layer, stays[row].nonzero().flatten(), len(row))
        self._keep(structure.without(classes))

    def _prune_by_hand(
        self, module: nn.Module, indices: Any, cascading_modules: Iterable[nn.Module]
    ) -> None:
        name = self._layer_name(module)
        width = units_of(module)
        keep = kept(f"layer '{name}'", indices, width)
        readers = dict.fromkeys(cascading_modules)
        followers = [self._given_follower(reader, width) for reader in readers]
        slices, changes = self._outgoing(module, keep)
        for follower in followers:
            new_slices, new_changes = self._incoming(follower, keep, width)
            slices, changes = slices + new_slices, changes + new_changes
        self._carry_out_by_hand(slices, changes)
        self._remember(name, keep, width)

    def prune_module(
        self,
        module: nn.Module,
        indices: Any,
        direction: str = "out",
        original_len: int | None = None,
    ) -> None:
        """Remove outputs (or, with ``direction="in"``, inputs) of one module only.

        ``original_len`` is the number of units that ``indices`` refer to: required for Dropout,
        which has no width; for other modules each unit is then a block of consecutive inputs.
        """
        if direction not in ("in", "out"):
            raise UserError(f"direction={direction!r} is not known; it is 'in' or 'out'.")
        if direction == "out":
            name, width = self._layer_name(module), units_of(module)
            keep = kept(f"layer '{name}'", indices, width)
            self._carry_out_by_hand(*self._outgoing(module, keep))
            self._remember(name, keep, width)
            return
        follower = self._given_follower(module, original_len)
        width = original_len or inputs_of(module)
        keep = kept(f"the input of '{follower.name}'", indices, width)
        self._carry_out_by_hand(*self._incoming(follower, keep, width))

    def prune_parameter(
        self, module: nn.Module, parameter_name: str, indices: Any, axis: int = 0
    ) -> None:
        """Remove ``indices`` of one parameter or buffer along ``axis``; None stays None.

        Nothing else changes: neither the module's attributes, nor other tensors, nor the recipe.
        """
        named = f"'{self._name(module)}'.{parameter_name}"
        stored = module._parameters | module._buffers
        if parameter_name not in stored:
            names = ", ".join(stored) or "none"
            raise UserError(f"{named} is no parameter or buffer; the module has: {names}.")
        tensor = stored[parameter_name]
        if tensor is None:
            return
        if not 0 <= axis < tensor.ndim:
            raise UserError(f"{named} has no axis {axis}; it has {tensor.ndim}, from 0.")
        keep = kept(f"{named}, axis {axis},", indices, tensor.shape[axis])
        self._carry_out_by_hand([Slice(module, parameter_name, axis, keep)], [])

    def _keep(self, structure: Structure) -> None:
        self._structure, self._seen = structure, self._fingerprint()

    def _fingerprint(self) -> Any:
        """Return the attributes, shapes and hooks that determine the structure, for comparison."""
        modules = [
            (name, id(module), {k: v for k, v in vars(module).items() if type(v) in PLAIN})
            for name, module in self.model.named_modules()
        ]
        for *_, attributes in modules:
            attributes.pop("training", None)  # both modes are traced
        tensors = (*self.model.named_parameters(), *self.model.named_buffers())
        shapes = [(name, tensor.shape, tensor.requires_grad) for name, tensor in tensors]
        return modules, shapes, added_code(self.model)

    def _name(self, module: nn.Module) -> str:
        """Return the qualified name of one of the model's modules."""
        names = {known: name for name, known in self.model.named_modules()}
        if module not in names:
            raise UserError(f"This {type(module).__name__} is not part of the model: {module}.")
        return names[module]

    def _layer_name(self, module: nn.Module) -> str:
        name = self._name(module)
        if not isinstance(module, LAYERS):
            raise UserError(
                f"{type(module).__name__} ('{name}') has no units that can be removed; only Linear "
                "and convolution layers have."
            )
        check_stored(name, module)
        if getattr(module, "groups", 1) > 1:
            raise UserError(
                f"Layer '{name}' is a grouped convolution (groups={module.groups}): its units "
                "cannot be removed one by one."
            )
        return name

    def _given_follower(self, module: nn.Module, width: int | None) -> Follower:
        """Return ``module`` as a reader of ``width`` units (None: as many as it has inputs)."""
        name, kind = self._name(module), type(module).__name__
        if (
            not isinstance(module, (*LAYERS, BatchNorm, Dropout))
            or getattr(module, "groups", 1) > 1
        ):
            raise UserError(
                f"The inputs of '{name}' ({kind}) cannot be removed; those of a BatchNorm, "
                "Dropout, Linear or ungrouped convolution can."
            )
        check_stored(name, module)
        if width is not None and width < 1:
            raise UserError(f"original_len={width} must be at least 1.")
        if isinstance(module, Dropout):
            if width is None:
                raise UserError(f"'{name}' ({kind}) has no width: original_len must give it.")
            return Follower(module, name, 1)
        inputs = inputs_of(module)
        positions, rest = divmod(inputs, width or inputs)
        if rest or not positions:
            raise UserError(f"'{name}' ({kind}) has {inputs} inputs, no multiple of {width} units.")
        return Follower(module, name, positions)

    def _outgoing(self, module: nn.Module, keep: torch.Tensor) -> tuple[list[Slice], list[Change]]:
        return slices_of(module, "out", keep), [change_of(module, "out", len(keep))]

    def _incoming(
        self, follower: Follower, keep: torch.Tensor, width: int
    ) -> tuple[list[Slice], list[Change]]:
        module = follower.module
        if isinstance(module, Dropout):
            return [], [rescaled_dropout(module, width - len(keep), width)]
        check_stored(follower.name, module)
        block = torch.arange(follower.positions, device="cpu")
        inputs = (keep[:, None] * follower.positions + block).flatten()
        return slices_of(module, "in", inputs), [change_of(module, "in", len(inputs))]

    def _remember(self, name: str, keep: torch.Tensor, width: int) -> None:
        if len(keep) < width:
            original = self.kept.get(name, list(range(width)))
            self.kept[name] = [original[unit] for unit in keep.tolist()]

    def _carry_out_by_hand(self, slices: list[Slice], changes: list[Change]) -> None:
        """Carry out what the user named; no structure ensures that it is complete."""
        slices = [part for part in slices if len(part.keep) != part.width]
        check_slices(self.model, slices)
        carry_out(slices, changes, self.optimizer, self.rescale_dropout)
