"""Running a traced model in two parts: up to a layer's units, and again and again behind them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from pruning_lab import ledger
from pruning_lab.errors import UserError
from pruning_lab.graph.entry import Entry, find_entry
from pruning_lab.graph.folding import Seen, Sizes, Substitutes, made_faster
from pruning_lab.graph.parts import descendants, graded, masked_units, part
from pruning_lab.graph.shares import share_of


@dataclass(frozen=True)
class State:
    """What the first part leaves for the second, sample by sample.

    ``activations`` are those at the sites; of a site behind another one it is None, since it
    changes with the mask. ``live`` are other values that cross the cut (a residual branch, say).
    """

    activations: list[torch.Tensor | None]
    live: list[Any]
    by_sample: list[bool]
    """Which of the live values have a row for each sample."""
    stackable: bool
    """Whether rows may be chosen freely: not when anything else read off the batch crosses."""

    def __len__(self) -> int:
        return len(self.activation)

    @property
    def activation(self) -> torch.Tensor:
        """The activation at the first site."""
        return next(each for each in self.activations if each is not None)

    def rows(self, samples: torch.Tensor) -> list[Any]:
        """The live values, a row for each of ``samples``; copies, safe from in-place operations."""
        found = []
        for value, by_sample in zip(self.live, self.by_sample, strict=True):
            if isinstance(value, torch.Tensor):
                chosen = by_sample and self.stackable
                value = value.index_select(0, samples) if chosen else value.clone()
            found.append(value)
        return found


class Cut:
    """A model split behind one or more sites.

    ``before(x)`` runs what the sites need, once; ``after(state, samples, keep)`` runs only the
    operations that depend on a site. A site is a node and the dimension in which its units lie.
    """

    def __init__(
        self, module: fx.GraphModule, sites: Sequence[tuple[fx.Node, int]], made: Substitutes
    ) -> None:
        self._made = made
        self._axes = [axis for _, axis in sites]
        nodes = [node for node, _ in sites]
        self._later = [
            any(node in descendants([other]) for other in nodes if other is not node)
            for node in nodes
        ]
        first = [node for node, later in zip(nodes, self._later, strict=True) if not later]
        masked = {
            node: axis for (node, axis), later in zip(sites, self._later, strict=True) if later
        }
        output = next(node for node in module.graph.nodes if node.op == "output")
        behind = descendants(nodes)
        if output not in behind:
            raise UserError(
                f"The model's output does not depend on `{nodes[0]}`: nothing to score."
            )
        inputs = dict.fromkeys(
            source
            for node in module.graph.nodes
            if node in behind and node not in first
            for source in node.all_input_nodes
            if source not in behind and source.op != "get_attr"
        )
        given = descendants([node for node in module.graph.nodes if node.op == "placeholder"])
        self._from_x = [node in given for node in inputs]
        self._by_sample: list[bool] = []
        self._stackable: bool | None = None
        self._before = part(module, [], [*first, *inputs])
        self._after = part(module, [*first, *inputs], output.args[0], masked)
        self.entry: Entry | None = find_entry(self._after, sites[0][1]) if len(sites) == 1 else None
        self.share_before = share_of(self._before.graph.nodes)
        self.share_after = share_of(self._after.graph.nodes)

    def prepare(self, state: State, many: bool) -> None:
        """Put faster modules behind the sites; with ``many`` rows like ``state``'s more pays.

        They are shared with the cut that was prepared before. What only that one used goes.
        """
        parts, seen = self._parts(), self._sizes(state) if many else {}
        behind = {module for each in parts for module in each.modules()}
        self._keep_made(lambda modules, _: behind.issuperset(modules))  # they are large
        used = set().union(*(made_faster(each, seen, self._made) for each in parts))
        self._keep_made(lambda _, module: module in used)

    def _keep_made(self, wanted: Callable[[tuple[nn.Module, ...], nn.Module], bool]) -> None:
        for key, module in list(self._made.items()):
            if not wanted(key[0], module):
                del self._made[key]

    def _sizes(self, state: State) -> Seen:
        """The sizes of the maps behind the sites."""
        given = [each.clone() for each in state.activations if each is not None]
        masks = [given[0].new_ones(len(state), 1) for each in state.activations if each is None]
        ledger.forward(len(state), self.share_after.forward)
        sizes = Sizes(self._after)
        sizes.run(*given, *state.rows(torch.arange(len(state), device=given[0].device)), *masks)
        return sizes.seen

    def close(self) -> None:
        """Let go of what is behind now: the parts refer to themselves and would keep it a while."""
        for each in self._parts():
            each._modules.clear()

    def _parts(self) -> list[fx.GraphModule]:
        return [self._after] if self.entry is None else [self._after, self.entry.rest]

    @torch.no_grad()
    def before(self, x: torch.Tensor) -> State:
        """Run the part of the model that the sites, and what lies behind them, need from ``x``."""
        if self._stackable is None:
            self._stackable = self._look(x)
        activations, live = self._run_before(x)
        own = iter(activations)
        every = [None if later else next(own) for later in self._later]
        return State(every, live, self._by_sample, self._stackable)

    def _run_before(self, x: torch.Tensor) -> tuple[list[torch.Tensor], list[Any]]:
        ledger.forward(len(x), self.share_before.forward)
        found, first = self._before(x), len(self._later) - sum(self._later)
        return found[:first], found[first:]

    def _look(self, x: torch.Tensor) -> bool:
        """Find out which live values have a row for each sample; whether all from ``x`` have."""
        with ledger.checking():
            few, more = (self._run_before(each) for each in two_and_three(x))
        check_rows(few[0], more[0])
        pairs = list(zip(few[1], more[1], strict=True))
        self._by_sample = [
            from_x and has_rows(*pair) for from_x, pair in zip(self._from_x, pairs, strict=True)
        ]
        return self._by_sample == self._from_x

    def after(self, state: State, samples: torch.Tensor, keep: Sequence[torch.Tensor]) -> Any:
        """The model's output for rows of ``samples`` if their units were put to 0 but for ``keep``.

        ``keep`` has one mask a site, (rows, units).
        """
        carried, masks = [], []
        for activation, axis, mask in zip(state.activations, self._axes, keep, strict=True):
            if activation is None:
                masks.append(mask)
            else:
                carried.append(masked_units(activation.index_select(0, samples), mask, axis))
        output = self._after(*carried, *state.rows(samples), *masks)
        ledger.forward(len(samples), self.share_after.forward)
        return output

    def resume(self, state: State, samples: torch.Tensor, entered: torch.Tensor) -> Any:
        """The model's output if the layer of ``entry`` gave ``entered``, a row for each sample."""
        assert self.entry is not None
        output = self.entry.rest(entered, *state.rows(samples))
        ledger.forward(len(samples), self.entry.share_rest.forward)
        return output


def two_and_three(x: torch.Tensor) -> list[torch.Tensor]:
    """The first sample two and three times: what has as many rows lies by samples.

    Not once, for code may drop a dimension then.
    """
    return [x[:1].repeat_interleave(size, 0) for size in (2, 3)]


def check_rows(few: Sequence[torch.Tensor], more: Sequence[torch.Tensor]) -> None:
    """UserError unless activations of two and of three samples have a row for each."""
    for pair in zip(few, more, strict=True):
        if not has_rows(*pair):
            raise samples_elsewhere(pair[0])


def has_rows(few: Any, more: Any) -> bool:
    """Whether values of two and of three samples have a row for each."""
    return all(
        isinstance(value, torch.Tensor) and value.ndim > 0 and len(value) == size
        for value, size in ((few, 2), (more, 3))
    )


def samples_elsewhere(activation: object) -> UserError:
    """The error for activations that do not have a row for each sample."""
    if isinstance(activation, torch.Tensor):
        found = f"of shape {tuple(activation.shape)}"
    else:
        found = f"a {type(activation).__name__}"
    return UserError(
        "The activation to be scored must be a tensor with the samples in its first dimension; "
        f"of two samples it is {found}. Score a layer whose output is."
    )


def record(
    module: fx.GraphModule, x: torch.Tensor, sites: list[fx.Node]
) -> tuple[Any, list[torch.Tensor]]:
    """The output for ``x`` and the activations at ``sites``, connected by autograd."""
    ledger.forward(len(x))
    found: dict[fx.Node, torch.Tensor | None] = dict.fromkeys(sites)
    interpreter = fx.Interpreter(module, garbage_collect_values=False)
    interpreter.env, interpreter.args_iter = {}, iter((x,))
    value = None
    for node in module.graph.nodes:
        value = interpreter.run_node(node)
        if node in found:
            if not isinstance(value, torch.Tensor):
                raise samples_elsewhere(value)
            found[node] = graded(value) if torch.is_grad_enabled() else value
            # a copy goes on, since an in-place ReLU behind the site would overwrite the record
            value = value.clone()
        interpreter.env[node] = value
    activations = [found[site] for site in sites]
    return value, [each for each in activations if each is not None]
