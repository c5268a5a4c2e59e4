"""Criteria on the model's loss when units are put to 0: layer by layer, batch by batch."""

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar

import numpy as np
import torch

from pruning_lab import ledger, ranks
from pruning_lab.attributions.apart import check_apart
from pruning_lab.attributions.base import AttributionMetric, Progress, Site
from pruning_lab.attributions.batches import Part, parts
from pruning_lab.attributions.checks import check_samples_apart, same
from pruning_lab.attributions.formulas import fitting
from pruning_lab.attributions.game import Game
from pruning_lab.attributions.memory import Made, Room
from pruning_lab.attributions.players import Players
from pruning_lab.attributions.reduction import Estimate, Reducer
from pruning_lab.errors import UserError, check_choice, check_count
from pruning_lab.graph.cut import State, two_and_three
from pruning_lab.graph.shares import Share
from pruning_lab.ledger import Prediction

PRECISIONS = ("fp32", "bf16")

MEMORY = defaultdict(lambda: 32 * 2**20, cuda=2**30)
"""About how many bytes the activations of a batch, and of masked rows of it, may take, by device:
few enough to stay near a CPU, many enough to fill a GPU."""

FEWEST_ROWS, MOST_ROWS = 4, 4096
"""But at least and at most so many masked rows go through the model at once."""

MANY = 16
"""From so many on matrix products for small maps pay."""


@dataclass(frozen=True)
class Parts:
    """What a sample takes of a whole pass: up to the sites of ``players``, and behind them.

    ``entered`` is what is behind as walks go in: the first layer, and the rest; None where they do
    not.
    """

    players: int
    before: float
    after: Share
    entered: tuple[float, float] | None

    @property
    def once(self) -> float:
        """Before its first walk, but for what its batch takes: as of one of 1."""
        layer, _ = self.entered or (0.0, 0.0)
        return self.before + 2 * self.after.forward + 2 * layer

    def walk(self, ways: int) -> float:
        """From one order: all coalitions but the first and the last."""
        return (self.players - 1) * self._step(ways)

    def removals(self) -> float:
        """For what happens when each player alone goes."""
        return self.once + self.players * self._step(1)

    def _step(self, ways: int) -> float:
        layer, rest = self.entered or (0.0, self.after.forward)
        return ways * rest + layer / self.players


class MaskMetric(AttributionMetric):
    """A criterion on the losses of a layer's coalitions of units.

    Only the part of the model behind the layer runs again for each. ``samples`` limits how many
    samples are read; ``precision="bf16"`` runs that part in bfloat16 (where it can be exact,
    float32 or what the model has is). Batches and masked rows go through in parts of about
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
        check_choice("precision", self.precision, PRECISIONS)

    def _games(
        self,
        graph: Any,
        players: Players,
        behind: bool,
        at_most: int | None = None,
        numbers: range | None = None,
    ) -> Iterator[tuple[Game, Part]]:
        """The game of each part of the data, of ``at_most`` so many samples.

        ``numbers`` of the samples to read; by default the first ``samples``.
        """
        start, stop = (numbers.start, numbers.stop) if numbers else (0, self.samples)
        room, seen, at_once = None, start, 0
        sites, opened = self._cut(graph, players, behind)
        with closing(opened) as cut:
            play = partial(self._game, cut, sites)
            for batch in self.batches.read(stop, start):
                if room is None:
                    room = self._room(cut, play, *batch)
                    at_once = ranks.agreed(partial(min, room.samples, at_most or room.samples))
                for part in parts(batch, at_once, seen):
                    yield play(cut.before(part.x), part.target, room), part
                seen += len(batch[0])

    def _cut(self, graph: Any, players: Players, behind: bool) -> tuple[list[Site], Any]:
        sites = self._sites(graph, players, behind)
        return sites, graph.cut([(site.node, site.axis) for site in sites])

    def _opened(self, players: Sequence[Players], behind: bool) -> tuple[Any, list[int]]:
        """The model's graph, and how many players there are; UserError for what has no scores."""
        check_samples_apart(self.model)
        graph = self._graph(players)
        for each in players:
            self._cut(graph, each, behind)
        counts = self._counts(graph, players, behind)
        check_apart(self._output, self.batches.pair(), self._raw_losses)
        return graph, counts

    def _parts(self, players: Sequence[Players], behind: bool) -> list[Parts]:
        """What a sample takes of each set of players, as two of them tell."""
        graph, counts = self._opened(players, behind)
        batch, targets = next(self.batches.read(1))
        x, target = (two_and_three(each)[0] for each in (batch, targets))
        found = []
        for each, count in zip(players, counts, strict=True):
            sites, opened = self._cut(graph, each, behind)
            with closing(opened) as cut:
                game = self._game(cut, sites, cut.before(x.clone()), target, Room(2, 2, 2))
                entry = cut.entry if game.by_entry else None
                entered = (entry.share.forward, entry.share_rest.forward) if entry else None
                found.append(Parts(count, cut.share_before.forward, cut.share_after, entered))
        return found

    def _game(
        self, cut: Any, sites: list[Site], state: State, targets: torch.Tensor, room: Room
    ) -> Game:
        def losses(output: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
            exact = output if self.precision == "fp32" else output.float()
            return self._losses(exact, targets[samples])

        return Game(cut, sites, state, losses, room, self._autocast)

    @torch.no_grad()
    @ledger.checking()
    def _room(
        self, cut: Any, play: Callable[..., Game], batch: torch.Tensor, targets: torch.Tensor
    ) -> Room:
        """How much fits into ``memory``, by what two samples take; the parts are made ready."""
        x, target = (each[:1].repeat_interleave(2, 0) for each in (batch, targets))
        cut.before(x.clone())  # which looks at the model the first time
        with Made(self.model) as before:
            state = cut.before(x.clone())
        played = play(state, target, Room(2, 2, 2))
        with Made(self.model) as after:
            _ = played.ends
        largest = max(1, after.largest // 2)
        room = Room(
            max(1, self.memory // max(1, before.bytes)),  # of two samples: what units bring, too
            max(FEWEST_ROWS, min(MOST_ROWS, self.memory // (4 * largest))),
            max(1, 2 * self.memory // max(1, after.bytes)),  # of two rows a sample: there and back
        )
        exact = self.precision == "fp32"
        cut.prepare(state, many=exact and room.rows >= MANY)
        if exact:
            self._check_parts(x, target, play(state, target, Room(2, 2, 2)))
        return room

    def _check_parts(self, x: torch.Tensor, target: torch.Tensor, played: Game) -> None:
        """UserError unless the parts of the model give the loss that the whole model gives."""
        ledger.forward(len(x))
        expected = self._losses(self.model(x.clone()), target)
        scale = max(each.abs().max().item() for each in (expected, *played.ends))
        for found in (played.ends[0], played.full_by_entry()):
            if np.isfinite(scale) and not same(expected, found, scale):
                raise UserError(
                    f"{type(self.model).__name__}, run in two parts, gives the loss {found[0]:.6g} "
                    f"instead of {expected[0]:.6g}: a tensor is changed in place under two names, "
                    "perhaps, or the code draws at random."
                )
        halves = played.half()
        if np.isfinite(scale) and not all(same(halves[0], each, scale) for each in halves):
            raise UserError(
                f"Without half of the units {type(self.model).__name__} gives the loss "
                f"{halves[0][0]:.6g}, and {halves[1][0]:.6g} where the next layer takes them one "
                "by one: a hook, or code in the place of torch's own, changes what passes between "
                "the two. Take it out, or put it into a module of its own."
            )

    def _autocast(self) -> AbstractContextManager[None]:
        if self.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()


class OneRoundMetric(MaskMetric):
    """A criterion that knows beforehand which coalitions it asks."""

    skips: ClassVar[bool] = False
    """It skips units that are 0 anyway: what is predicted is the most that it may take."""

    @abstractmethod
    def _score(self, game: Game, first: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores of a batch, (samples, players), and the variances of their draws.

        ``first`` is the number of the batch's first sample in all the data.
        """

    def _numbers(self, players: int) -> int:
        """How many numbers a sample has: one a player."""
        return players

    def _draws(self) -> int:
        """How many independent draws a sample the variances are of."""
        return 1

    @abstractmethod
    def _rows(self, players: int) -> tuple[int, int]:
        """How many coalitions a sample takes, and how many of them with a way back."""

    def _evaluations(self, players: int) -> int:
        forward, backward = self._rows(players)
        return forward + 2 * backward  # a pass back takes about as long as two forward

    def _predict(self, players: Sequence[Players], behind: bool) -> Prediction:
        samples, forward, backward = self.batches.count(self.samples), 0.0, 0.0
        for part in self._parts(players, behind):
            self._at_most(part.players)
            there, back = self._passes(part)
            forward, backward = forward + samples * there, backward + samples * back
        return Prediction(forward, backward, at_most=self.skips)

    def _passes(self, part: Parts) -> tuple[float, float]:
        """What a sample takes, forward and backward, in whole passes."""
        there, back = self._rows(part.players)
        return part.before + there * part.after.forward, back * part.after.backward

    def _at_most(self, players: int) -> int | None:
        """How many samples at once; UserError for too many players."""

    def _check_players(self, players: Sequence[Players], behind: bool) -> None:
        for count in self._opened(players, behind)[1]:
            self._at_most(count)

    def _estimate(
        self, players: Sequence[Players], behind: bool, progress: Progress
    ) -> list[Estimate]:
        graph, counts = self._opened(players, behind)
        limits, found = [self._at_most(count) for count in counts], []
        for index, count in enumerate(counts):
            progress.planned(index, self.batches.available(self.samples) * self._evaluations(count))
        for index, (each, count, limit) in enumerate(zip(players, counts, limits, strict=True)):
            reducer = Reducer(self.reduction, self._draws())
            for game, part in self._games(graph, each, behind, limit):
                shape = len(part.x), self._numbers(count)
                scores, variances = (
                    fitting(some, shape, "(samples, players)", self._score)
                    for some in self._score(game, part.first)
                )
                reducer.add(scores, variances, part.samples)
                progress.done(index, part.samples * self._evaluations(count))
                del game  # before the next one is made: it is large
            found.append(reducer.estimate())
        return found
