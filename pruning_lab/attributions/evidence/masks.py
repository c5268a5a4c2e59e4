"""Criteria on the loss when units are set to 0, evaluated layer by layer, batch by batch."""

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from functools import cached_property, partial
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from pruning_lab.attributions.base import AttributionMetric, Progress, Site
from pruning_lab.attributions.estimation.reduction import Estimate, Reducer
from pruning_lab.attributions.evidence.game import Game
from pruning_lab.attributions.evidence.gathering import fitting
from pruning_lab.attributions.observation.batches import Made, Part, Room, parts
from pruning_lab.attributions.observation.checks import check_apart, check_statistics, same
from pruning_lab.attributions.unit_groups import UnitGroups
from pruning_lab.errors import UserError, check_choice, check_count
from pruning_lab.partial_forward.cut import ModelCut, ModelGraph, State
from pruning_lab.partial_forward.parts import Share
from pruning_lab.profiling import passes
from pruning_lab.profiling.passes import Prediction
from pruning_lab.runtime import distributed
from pruning_lab.runtime.inputs import Inputs, copied, in_float32, length, select

MEMORY = defaultdict(lambda: 32 * 2**20, cuda=2**30)
"""Approximate limit in bytes for the activations of a batch, and of its masked rows, by device:
small enough for a CPU's caches, large enough to fill a GPU."""

FEWEST_ROWS, MOST_ROWS = 4, 4096
"""Smallest and largest number of masked rows that go through the model at once."""

MANY = 16
"""Number of rows from which matrix products for small maps pay off."""


class Parts(NamedTuple):
    """Cost of a sample as shares of a whole pass: before the sites of ``players``, and after them.

    ``entered``: the cost after the sites if permutations are evaluated through the entry layer
    (see Game), that of this layer and that of the rest; None if they are not.
    """

    players: int
    before: float
    after: Share
    entered: tuple[float, float] | None

    @property
    def once(self) -> float:
        """Fixed cost per sample before the first permutation, assuming batch size 1."""
        layer, _ = self.entered or (0.0, 0.0)
        return self.before + 2 * self.after.forward + 2 * layer

    def walk(self, ways: int) -> float:
        """Cost of one permutation: all coalitions except the first and the last."""
        return (self.players - 1) * self._step(ways)

    def removals(self) -> float:
        """Cost of removing each player alone."""
        return self.once + self.players * self._step(1)

    def _step(self, ways: int) -> float:
        layer, rest = self.entered or (0.0, self.after.forward)
        return ways * rest + layer / self.players


class MaskMetric(AttributionMetric):
    """A criterion on the losses of a layer's coalitions of units.

    Only the part of the model after the layer runs again for each. ``samples`` limits how many
    samples are read; ``precision="bf16"`` runs that part under bfloat16 autocast, the exact
    ``"fp32"`` in the model's own type. Batches and masked rows are split into parts of about
    ``memory`` bytes, an attribute that may be set; copies of weights come on top.
    """

    evidence: ClassVar[str] = "losses under masks"
    options: ClassVar[tuple[str, ...]] = ("samples", "precision")

    samples: int | None = None
    precision: str = "fp32"

    @cached_property
    def memory(self) -> int:
        return MEMORY[self.device.type]

    def _check_options(self) -> None:
        if self.samples is not None:
            check_count("samples", self.samples)
        check_choice("precision", self.precision, ("fp32", "bf16"))

    def _games(
        self,
        graph: ModelGraph,
        unit_groups: UnitGroups,
        after_activation: bool,
        at_most: int | None = None,
        numbers: range | None = None,
    ) -> Iterator[tuple[Game, Part]]:
        """Yield the parts of the data, of up to ``at_most`` samples, each with its game.

        ``numbers``: the samples to read, by default the first ``samples``.
        """
        start, stop = (numbers.start, numbers.stop) if numbers else (0, self.samples)
        room, seen, at_once = None, start, 0
        sites, opened = self._cut(graph, unit_groups, after_activation)
        with closing(opened) as cut:
            play = partial(self._game, cut, sites)
            for batch in self.batches.read(stop, start):
                if room is None:
                    room = self._room(cut, play, *batch)
                    most = at_most or room.samples
                    at_once = distributed.agreed(partial(min, room.samples, most))
                for part in parts(batch, at_once, seen):
                    yield play(cut.before(part.inputs), part.target, room), part
                seen += length(batch)

    def _cut(
        self, graph: ModelGraph, unit_groups: UnitGroups, after_activation: bool
    ) -> tuple[list[Site], ModelCut]:
        sites = self._sites(graph, unit_groups, after_activation)
        return sites, graph.cut([(site.node, site.axis) for site in sites])

    def _opened(
        self, unit_groups: Sequence[UnitGroups], after_activation: bool
    ) -> tuple[ModelGraph, list[int]]:
        """Return the model's graph and the numbers of players; UserError if some have no scores."""
        check_statistics(self.model)
        graph = self._graph(unit_groups)
        for groups in unit_groups:
            self._cut(graph, groups, after_activation)
        counts = self._counts(graph, unit_groups, after_activation)
        check_apart(self._output, self.batches.pair(), self._raw_losses)
        return graph, counts

    def _parts(self, unit_groups: Sequence[UnitGroups], after_activation: bool) -> list[Parts]:
        """Return the cost of a sample for each set of unit groups, measured on the first one."""
        graph, counts = self._opened(unit_groups, after_activation)
        x, target = select(next(self.batches.read(1)), [0, 0])
        costs = []
        for groups, count in zip(unit_groups, counts, strict=True):
            sites, opened = self._cut(graph, groups, after_activation)
            with closing(opened) as cut:
                game = self._game(cut, sites, cut.before(copied(x)), target, Room(2, 2, 2))
                entry = cut.entry if game.units else None
                entered = (entry.share.forward, entry.share_rest.forward) if entry else None
                costs.append(Parts(count, cut.share_before.forward, cut.share_after, entered))
        return costs

    def _game(
        self, cut: ModelCut, sites: list[Site], state: State, targets: Inputs, room: Room
    ) -> Game:
        def losses(output: Any, samples: torch.Tensor) -> torch.Tensor:
            return self._losses(in_float32(output) if low else output, select(targets, samples))

        low = self.precision == "bf16"
        autocast = torch.autocast(self.device.type, torch.bfloat16) if low else nullcontext()
        return Game(cut, sites, state, losses, room, autocast)

    @torch.no_grad()
    @passes.checking()
    def _room(
        self, cut: ModelCut, play: Callable[..., Game], batch: Inputs, targets: Inputs
    ) -> Room:
        """Return the batch sizes that fit into ``memory``, by the first sample; prepare ``cut``."""
        x, target = select((batch, targets), [0, 0])
        cut.before(copied(x))  # the first call also checks the model
        with Made(self.model) as before:
            state = cut.before(copied(x))
        played = play(state, target, Room(2, 2, 2))
        with Made(self.model) as after:
            _ = played.ends
        room = Room(
            max(1, self.memory // max(1, before.bytes)),  # of two samples: units' inputs fit, too
            max(FEWEST_ROWS, min(MOST_ROWS, self.memory // (4 * max(1, after.largest // 2)))),
            max(1, 2 * self.memory // max(1, after.bytes)),  # of two rows: forward and backward
        )
        exact = self.precision == "fp32"
        cut.prepare(state, many=exact and room.rows >= MANY)
        if exact:
            self._check_parts(x, target, play(state, target, Room(2, 2, 2)))
        return room

    def _check_parts(self, x: Inputs, target: Inputs, played: Game) -> None:
        """Raise UserError unless the parts of the model give the loss of the whole model."""
        expected = self._losses(self._output(copied(x)), target)
        scale = max(losses.abs().max().item() for losses in (expected, *played.ends))
        full, half = played.by_both()
        for losses in full:
            if np.isfinite(scale) and not same(expected, losses, scale):
                raise UserError(
                    f"{type(self.model).__name__}, run in two parts, gives the loss "
                    f"{losses[0]:.6g} instead of {expected[0]:.6g}: perhaps a tensor is changed in "
                    "place under two names, or the code draws at random."
                )
        if np.isfinite(scale) and not all(same(half[0], losses, scale) for losses in half):
            raise UserError(
                f"Without half of the units {type(self.model).__name__} gives the loss "
                f"{half[0][0]:.6g}, but {half[1][0]:.6g} when they are subtracted from the "
                "next layer's output: a hook, or code that replaces torch's own, changes values "
                "between the two layers. Remove it, or put it into a module of its own."
            )


class OneRoundMetric(MaskMetric):
    """A criterion whose coalitions are known before any is evaluated."""

    skips: ClassVar[bool] = False
    """True if units that are 0 anyway are skipped: the predicted cost is an upper bound."""

    @abstractmethod
    def _score(self, game: Game, first: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the scores of a batch, (samples, players), and their sampling variances.

        ``first`` is the number of the batch's first sample in all the data.
        """

    def _numbers(self, players: int) -> int:
        """Return the number of scores per sample: one per player."""
        return players

    def _draws(self) -> int:
        """Return the number of independent draws per sample that give the variances."""
        return 1

    @abstractmethod
    def _rows(self, players: int) -> tuple[int, int]:
        """Return the number of coalitions per sample, and how many of them need a backward pass."""

    def _evaluations(self, players: int) -> int:
        forward, backward = self._rows(players)
        return forward + 2 * backward  # a backward pass takes about as long as two forward

    def _predict(self, unit_groups: Sequence[UnitGroups], after_activation: bool) -> Prediction:
        samples, forward, backward = self.batches.count(self.samples), 0.0, 0.0
        for part in self._parts(unit_groups, after_activation):
            self._at_most(part.players)
            there, back = self._passes(part)
            forward, backward = forward + samples * there, backward + samples * back
        return Prediction(forward, backward, at_most=self.skips)

    def _passes(self, part: Parts) -> tuple[float, float]:
        """Return the cost of a sample, forward and backward, in whole passes."""
        there, back = self._rows(part.players)
        return part.before + there * part.after.forward, back * part.after.backward

    def _at_most(self, players: int) -> int | None:
        """Return the maximum number of samples at once, if any; UserError for too many players."""

    def _check_unit_groups(self, unit_groups: Sequence[UnitGroups], after_activation: bool) -> None:
        for count in self._opened(unit_groups, after_activation)[1]:
            self._at_most(count)

    def _estimate(
        self, unit_groups: Sequence[UnitGroups], after_activation: bool, progress: Progress
    ) -> list[Estimate]:
        graph, counts = self._opened(unit_groups, after_activation)
        limits, estimates = [self._at_most(count) for count in counts], []
        for index, count in enumerate(counts):
            progress.planned(index, self.batches.available(self.samples) * self._evaluations(count))
        for index, (each, count, limit) in enumerate(zip(unit_groups, counts, limits, strict=True)):
            reducer = Reducer(self.reduction, self._draws())
            for game, part in self._games(graph, each, after_activation, limit):
                shape = length(part.inputs), self._numbers(count)
                scores, variances = (
                    fitting(values, shape, "(samples, players)", self._score)
                    for values in self._score(game, part.first)
                )
                reducer.add(scores, variances, part.samples)
                progress.done(index, part.samples * self._evaluations(count))
                del game  # before the next one is made: it is large
            estimates.append(reducer.estimate())
        return estimates
