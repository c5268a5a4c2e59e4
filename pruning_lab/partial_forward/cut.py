"""Split a traced model at a layer: run the part before it once, the part after it many times."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import fx, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from pruning_lab.errors import UserError
from pruning_lab.partial_forward.first_layer import Entry, find_entry
from pruning_lab.partial_forward.folding import Seen, Substitutes, made_faster
from pruning_lab.partial_forward.parts import Share, descendants, masked_units, part, share_of
from pruning_lab.profiling import passes
from pruning_lab.runtime.inputs import Inputs, copied, select


@dataclass(frozen=True)
class State:
    """Values that the part before the cut hands to the part after it, sample by sample.

    ``activations`` are those at the sites; None for a site after another one, whose activation
    depends on the mask. ``live`` are other values that cross the cut (a residual branch, say).
    """

    activations: list[torch.Tensor | None]
    live: list[Any]
    by_sample: list[bool]
    """For each live value, True if it has one row per sample."""
    stackable: bool
    """True if rows can be selected: each live value computed from the input has one per sample."""

    def __len__(self) -> int:
        return len(self.activation)

    @property
    def activation(self) -> torch.Tensor:
        """The activation at the first site."""
        return next(value for value in self.activations if value is not None)

    def rows(self, samples: torch.Tensor) -> list[Any]:
        """Return copies of the live values, one row per sample; safe from in-place operations."""
        return [
            select(value, samples) if by_sample and self.stackable else copied(value)
            for value, by_sample in zip(self.live, self.by_sample, strict=True)
        ]


class Cut:
    """A model split after one or more sites, each a node and the dimension of its units.

    ``before(x)`` runs the operations that do not depend on a site's mask, once;
    ``after(state, samples, keep)`` runs only the operations that depend on a site.
    """

    def __init__(
        self, module: fx.GraphModule, sites: Sequence[tuple[fx.Node, int]], made: Substitutes
    ) -> None:
        self._made = made
        self._axes = [axis for _, axis in sites]
        nodes = [node for node, _ in sites]
        dependent = descendants(user for node in nodes for user in node.users)
        self._later = [node in dependent for node in nodes]
        first = [node for node in nodes if node not in dependent]
        masked = {node: axis for node, axis in sites if node in dependent}
        output = next(node for node in module.graph.nodes if node.op == "output")
        if output not in dependent:
            raise UserError(
                f"The model's output does not depend on `{nodes[0]}`: nothing to score."
            )
        inputs = dict.fromkeys(
            source
            for node in module.graph.nodes
            if node in dependent
            for source in node.all_input_nodes
            if source not in dependent and source not in first and source.op != "get_attr"
        )
        given = descendants(node for node in module.graph.nodes if node.op == "placeholder")
        self._from_x = [node in given for node in inputs]
        self._by_sample: list[bool] | None = None
        self._before = part(module, [], [*first, *inputs])
        self._after = part(module, [*first, *inputs], output.args[0], masked)
        self.entry: Entry | None = find_entry(self._after, sites[0][1]) if len(sites) == 1 else None
        self.share_before = share_of(self._before.graph.nodes)
        self.share_after = share_of(self._after.graph.nodes)

    def prepare(self, state: State, many: bool) -> None:
        """Put faster modules after the sites; more of them if ``many`` rows like ``state`` follow.

        They are shared with the previously prepared cut; those that only it used are dropped.
        """
        parts, seen = self._parts(), self._sizes(state) if many else {}
        later = {module for after in parts for module in after.modules()}
        for key in [key for key in self._made if not later.issuperset(key[0])]:
            del self._made[key]  # frees memory first
        used = set().union(*(made_faster(after, seen, self._made) for after in parts))
        for key in [key for key, module in self._made.items() if module not in used]:
            del self._made[key]

    def _sizes(self, state: State) -> Seen:
        """Return the sizes of the maps that the convolutions after the sites see."""
        seen: Seen = defaultdict(set)
        names = {module: name for name, module in self._after.named_modules()}

        def look(module: nn.Module, given: tuple[Any, ...]) -> None:
            known = isinstance(module, nn.Conv2d) and module in names
            if known and given and given[0].ndim == 4:
                seen[names[module]].add(tuple(given[0].shape[2:]))

        keep = state.activation.new_ones(len(state), 1)
        every = torch.arange(len(state), device=keep.device)
        with register_module_forward_pre_hook(look):
            self.after(state, every, [keep] * len(self._axes))
        return seen

    def close(self) -> None:
        """Release the modules after the sites, which reference cycles would keep for a while."""
        for after in self._parts():
            after._modules.clear()

    def _parts(self) -> list[fx.GraphModule]:
        return [self._after] if self.entry is None else [self._after, self.entry.rest]

    @torch.no_grad()
    def before(self, x: torch.Tensor) -> State:
        """Run on ``x`` the operations that the sites, and everything after them, need."""
        if self._by_sample is None:
            self._by_sample = self._look(x)
        activations, live = self._run_before(x)
        read = iter(activations)
        by_site = [None if later else next(read) for later in self._later]
        return State(by_site, live, self._by_sample, self._by_sample == self._from_x)

    def _run_before(self, x: torch.Tensor) -> tuple[list[torch.Tensor], list[Any]]:
        passes.forward(len(x), self.share_before.forward)
        values, first = self._before(x), self._later.count(False)
        return values[:first], values[first:]

    def _look(self, x: torch.Tensor) -> list[bool]:
        """Return, for each live value, whether it has a row per sample."""
        with passes.checking():
            two, three = (self._run_before(samples) for samples in two_and_three(x))
        check_rows(two[0], three[0])
        live = zip(self._from_x, two[1], three[1], strict=True)
        return [from_x and has_rows(few, more) for from_x, few, more in live]

    def after(self, state: State, samples: torch.Tensor, keep: Sequence[torch.Tensor]) -> Any:
        """Return the model's output for ``samples`` with the units that ``keep`` excludes set to 0.

        ``samples`` are row numbers of ``state``; ``keep`` has one mask per site, (rows, units).
        """
        carried, masks = [], []
        for activation, axis, mask in zip(state.activations, self._axes, keep, strict=True):
            if activation is None:
                masks.append(mask)
            else:
                carried.append(masked_units(activation.index_select(0, samples), mask, axis))
        output = self._after(*carried, *state.rows(samples), *masks)
        passes.forward(len(samples), self.share_after.forward)
        return output

    def resume(self, state: State, samples: torch.Tensor, entered: torch.Tensor) -> Any:
        """Return the model's output if ``entry``'s layer gave ``entered``, one row per sample."""
        assert self.entry is not None
        output = self.entry.rest(entered, *state.rows(samples))
        passes.forward(len(samples), self.entry.share_rest.forward)
        return output


def two_and_three(inputs: Inputs) -> list[Inputs]:
    """Return the first sample repeated two and three times, to see which values have sample rows.

    A single copy would not do, since code may drop a dimension of size 1.
    """
    return [select(inputs, [0] * size) for size in (2, 3)]


def check_rows(few: Sequence[torch.Tensor], more: Sequence[torch.Tensor]) -> None:
    """Raise UserError unless activations of two and of three samples have one row per sample."""
    for pair in zip(few, more, strict=True):
        if not has_rows(*pair):
            raise samples_elsewhere(pair[0])


def has_rows(few: Any, more: Any) -> bool:
    """Return whether values of two and of three samples have one row per sample."""
    return all(
        isinstance(value, torch.Tensor) and value.ndim > 0 and len(value) == size
        for value, size in ((few, 2), (more, 3))
    )


def samples_elsewhere(activation: object) -> UserError:
    """Return the error for activations that do not have one row per sample."""
    if isinstance(activation, torch.Tensor):
        actual = f"of shape {tuple(activation.shape)}"
    else:
        actual = f"a {type(activation).__name__}"
    return UserError(
        "The activation to be scored must be a tensor with the samples in its first dimension; "
        f"of two samples it is {actual}. Score a layer that has such an output."
    )


def recordable(value: object, graded: bool) -> torch.Tensor:
    """Return an activation, which now requires a gradient if ``graded`` and if it can have one.

    Raises UserError if it is no tensor.
    """
    if not isinstance(value, torch.Tensor):
        raise samples_elsewhere(value)
    able = graded and value.is_floating_point() and not value.is_inference()
    return value.requires_grad_() if able and not value.requires_grad else value


Place = Any
"""Where a value is read: an operation of the traced model, or with hooks a module or its input."""


class ModelCut(Protocol):
    """A model split after some sites; see ``Cut``."""

    @property
    def entry(self) -> Entry | None: ...
    @property
    def share_before(self) -> Share: ...
    @property
    def share_after(self) -> Share: ...
    def prepare(self, state: State, many: bool) -> None: ...
    def before(self, x: Inputs) -> State: ...
    def after(self, state: State, samples: torch.Tensor, keep: Sequence[torch.Tensor]) -> Any: ...
    def close(self) -> None: ...


class ModelGraph(Protocol):
    """A model's sites and cuts; see ``Graph``, by its traced operations, and ``HookedGraph``."""

    def site(self, module: nn.Module, after_activation: bool = False) -> Place: ...
    def sites(self, module: nn.Module, after_activation: bool = False) -> Sequence[Place]: ...
    def entering(self, module: nn.Module) -> Place: ...
    def norm_after(self, module: nn.Module) -> nn.Module | None: ...
    def share(self, site: Place) -> Share: ...
    def share_back(self, sites: Sequence[Place]) -> float: ...
    def cut(self, sites: Sequence[tuple[Place, int]]) -> ModelCut: ...
    def record(self, x: Inputs, sites: list[Place]) -> tuple[Any, list[torch.Tensor]]: ...
