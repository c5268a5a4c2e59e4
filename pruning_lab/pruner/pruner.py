"""Remove units from a model in place, with all tensors and optimizer state that depend on them."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from pruning_lab.coupling.call import tensors_of
from pruning_lab.coupling.structure import Structure, find_structure
from pruning_lab.errors import UserError
from pruning_lab.graph.added_code import added_code
from pruning_lab.graph.kinds import LAYERS, inputs_of, units_of
from pruning_lab.graph.refusals import check_initialised
from pruning_lab.pruner import by_hand
from pruning_lab.pruner.removal import Indices, classes_of, classes_of_plan, kept, remove
from pruning_lab.pruner.slicing import Change, Slice, carry_out
from pruning_lab.pruner.trial import check_cut

PLAIN = (bool, int, float, str, type(None), tuple)
"""Types of attributes on which a forward method may branch."""


class Pruner:
    """Remove units of a model for good.

    ``model`` is changed in place: parameters stay the same objects, and their gradients and the
    state of ``optimizer`` (one of torch's that update every weight by itself) are sliced with them.
    ``input_size`` is the shape of one sample. ``device`` is part of the seed's signature and not
    used: the structure is found without running the model. ``structure`` is that of the model, if
    known, for example from a copy. Without ``rescale_dropout`` Dropout rates are not changed.
    Without ``watch`` the structure is not found again when attributes of modules change: for a
    caller who changes none, whatever the model's own forward writes.

    ``kept`` is the recipe so far: for each pruned layer the original numbers of remaining units.
    Raises UserError for a model with parameters without a shape. A refused call (UserError) changes
    nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        input_size: Sequence[int],
        device: torch.device | str,
        optimizer: torch.optim.Optimizer | None = None,
        structure: Structure | None = None,
        rescale_dropout: bool = True,
        watch: bool = True,
    ) -> None:
        self.model = model
        self.input_size = tuple(input_size)
        self.device = torch.device(device)
        self.optimizer = optimizer
        self.rescale_dropout, self.watch = rescale_dropout, watch
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
        structure = self._structure
        if structure is None or (self.watch and self._seen != self._fingerprint()):
            structure = find_structure(self.model, self.input_size)
            check_cut(self.model, structure, self.input_size)
            self._keep(structure)
        return structure

    def prune_model(
        self,
        module: nn.Module,
        indices: Indices,
        cascading_modules: Iterable[nn.Module] | None = None,
    ) -> None:
        """Remove units ``indices`` of ``module``, units coupled to them, and inputs that read them.

        The coupled units (in a residual network, of several layers) and the readers are found by
        tracing. ``cascading_modules`` names the readers instead, for a model that cannot be traced.
        Dropout rates fall by the share of units removed.
        """
        if cascading_modules is not None:
            self._prune_by_hand(module, indices, cascading_modules)
        else:
            name, structure = self._layer_name(module), self.structure
            self._remove(structure, classes_of(structure, name, indices))

    def prune_groups(self, plan: Mapping[str, Indices]) -> None:
        """Remove unit groups at once; ``plan`` maps coupled layers to numbers of unit groups.

        Names and numbers are those of ``structure.groups`` before the call.
        """
        structure = self.structure
        self._remove(structure, classes_of_plan(structure, plan))

    def prune_module(
        self,
        module: nn.Module,
        indices: Indices,
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
            self._prune_by_hand(module, indices, ())
            return
        name = self._name(module)
        by_hand.check_reader(name, module, original_len)
        width = original_len or inputs_of(module)
        keep = kept(f"the input of '{name}'", indices, width)
        self._carry_out(by_hand.incoming(module, keep, width))

    def prune_parameter(
        self, module: nn.Module, parameter_name: str, indices: Indices, axis: int = 0
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
        self._carry_out([Slice(module, parameter_name, axis, keep)])

    def _remove(self, structure: Structure, classes: torch.Tensor) -> None:
        remove(self.model, structure, classes, self.optimizer, self.rescale_dropout)
        stays = ~structure.marked(classes)
        for layer, row in structure.units.items():
            self._remember(layer, stays[row].nonzero().flatten(), len(row))
        self._keep(structure.without(classes))

    def _prune_by_hand(
        self, module: nn.Module, indices: Indices, readers: Iterable[nn.Module]
    ) -> None:
        name = self._layer_name(module)
        by_hand.check_layer(name, module)
        width = units_of(module)
        keep = kept(f"layer '{name}'", indices, width)
        readers = dict.fromkeys(readers)
        for reader in readers:
            by_hand.check_reader(self._name(reader), reader, width)
        parts = by_hand.resized(module, "out", keep)
        for reader in readers:
            parts += by_hand.incoming(reader, keep, width)
        self._carry_out(parts)
        self._remember(name, keep, width)

    def _carry_out(self, parts: list[Slice | Change]) -> None:
        """Carry out what the user named."""
        parts = by_hand.checked(self.model, parts)
        carry_out(parts, self.optimizer, self.rescale_dropout)

    def _remember(self, name: str, keep: torch.Tensor, width: int) -> None:
        if len(keep) < width:
            original = self.kept.get(name, list(range(width)))
            self.kept[name] = [original[unit] for unit in keep.tolist()]

    def _keep(self, structure: Structure) -> None:
        self._structure, self._seen = structure, self._fingerprint()

    def _fingerprint(self) -> tuple[object, ...]:
        """Return the attributes, shapes and hooks that determine the structure, for comparison."""
        modules = [
            (name, id(module), {k: v for k, v in vars(module).items() if type(v) in PLAIN})
            for name, module in self.model.named_modules()
        ]
        for *_, attributes in modules:
            attributes.pop("training", None)  # both modes are traced
        shapes = [(name, t.shape, t.requires_grad) for name, t in tensors_of(self.model)]
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
        return name
