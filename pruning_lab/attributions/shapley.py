"""What a unit is worth on average over all orders in which the layer can lose its units."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from functools import partial
from time import perf_counter as clock
from typing import Any, ClassVar

import numpy as np
import torch

from pruning_lab import ranks
from pruning_lab.attributions.base import Progress
from pruning_lab.attributions.game import Game
from pruning_lab.attributions.masks import MaskMetric
from pruning_lab.attributions.players import Players
from pruning_lab.attributions.reduction import REDUCTIONS, Estimate, Reducer
from pruning_lab.attributions.rounds import Drawn
from pruning_lab.attributions.stopping import MOST, Sampled, Stopping, missed, more
from pruning_lab.errors import UserError, check_count, check_seed
from pruning_lab.ledger import Prediction

log = logging.getLogger(__name__)

RULES = tuple(field.name for field in fields(Stopping))


class ShapleyAttributionMetric(MaskMetric):
    """Sampled Shapley value of every unit: mean over orders of L(S without u) - L(S).

    The units of the layer are put to 0 one after another in a random order; a unit's score is the
    mean rise of the loss at its turn (Ancona et al., arXiv 2006.01795). Per sample the scores sum
    to L(no unit) - L(all units).

    Every sample has ``sv_samples`` orders of its own, in antithetic pairs (an order and its
    reverse; an odd number is rounded up), where TorchPruner shares its orders between all samples:
    independent ones average the error away. ``permutations`` (orders, units) are used for every
    sample instead, as removal orders. ``samples`` limits how many samples are read; with a rule of
    ``Stopping`` it is the number of the first round, and further rounds read more. The random
    stream belongs to (seed, number of the sample, number of the pair): batch sizes do not matter.
    Cost: ``sv_samples`` x units evaluations a sample of the part of the model behind the site.
    """

    options: ClassVar[tuple[str, ...]] = (
        "sv_samples", "permutations", *RULES, *MaskMetric.options, "seed",
    )  # fmt: skip
    sv_samples: int = 5
    seed: int = 0
    permutations: Any = None
    relative_error: float | None = None
    separated: float | None = None
    evaluations: int | None = None
    seconds: float | None = None

    def _check_options(self) -> None:
        super()._check_options()
        check_seed("seed", self.seed)
        check_count("sv_samples", self.sv_samples)
        if self._rules.any and self.permutations is not None:
            raise UserError(f"permutations leave nothing to draw: leave out {', '.join(RULES)}.")
        if self._rules.any and self.reduction not in REDUCTIONS:
            raise UserError(
                f"With reduction={self.reduction} nothing is known of the scores' errors: "
                f"{', '.join(RULES)} need one of {', '.join(REDUCTIONS)}."
            )

    @property
    def _rules(self) -> Stopping:
        return Stopping(**{rule: getattr(self, rule) for rule in RULES})

    def _check_players(self, players: Sequence[Players], behind: bool) -> None:
        self._opening(self._opened(players, behind)[1])

    def _estimate(
        self, players: Sequence[Players], behind: bool, progress: Progress
    ) -> list[Estimate]:
        graph, counts = self._opened(players, behind)
        samples, pairs = self._opening(counts)
        layers = [
            _Layer(self, (graph, each, behind), count, partial(progress.done, index))
            for index, (each, count) in enumerate(zip(players, counts, strict=True))
        ]
        if self._rules.any:
            return self._in_rounds(layers, samples, pairs, progress)
        for index, layer in enumerate(layers):
            progress.planned(index, layer.evaluations(samples, pairs))
        found = []
        for index, layer in enumerate(layers):
            found.append(layer.at_once(pairs))
            progress.error(index, found[-1].relative_error)
        return found

    def _in_rounds(
        self, layers: "Sequence[_Layer]", samples: int, pairs: int, progress: Progress
    ) -> list[Estimate]:
        """The scores of layers that get more samples, then more draws, until the rules hold."""
        rules, available = self._rules, self.batches.count()
        if rules.seconds is not None:
            log.warning("Sampling ends after %s s: it cannot be repeated exactly.", rules.seconds)
        rounds = [samples] * len(layers)
        while any(rounds):
            steps = [
                layer.step(size, available, pairs)
                for layer, size in zip(layers, rounds, strict=True)
            ]
            for index, step in enumerate(steps):
                progress.planned(index, layers[index].evaluations(*map(len, step)))
            for index, (layer, step) in enumerate(zip(layers, steps, strict=True)):
                if rounds[index]:
                    layer.draw(*step)
                    progress.error(index, layer.estimate.relative_error)
            rounds = ranks.agreed(lambda: more([each.state(available) for each in layers], rules))
        if message := missed([layer.state(available) for layer in layers], rules):
            log.warning(message)
        return [layer.estimate for layer in layers]

    def _predict(self, players: Sequence[Players], behind: bool) -> Prediction:
        """At most: walks skip units that a sample leaves at 0, rules end before their last round.

        A round of draws reads the samples anew.
        """
        rules, parts = self._rules, self._parts(players, behind)
        _, pairs = self._opening([part.players for part in parts])
        if self.permutations is not None:
            walks, ways = len(self.permutations), 1
        else:
            walks, ways = pairs, 2
        once = [part.once for part in parts]
        walk = [part.walk(ways) for part in parts]
        if not rules.any:
            total = sum(once) + walks * sum(walk)
            return Prediction(self.batches.count(self.samples) * total, 0.0, at_most=True)
        prices = [w + o for w, o in zip(walk, once, strict=True)]
        forward = self.batches.count() * max(MOST, pairs) * sum(prices)
        if rules.evaluations is not None:
            dearest = max(p / (2 * part.players) for p, part in zip(prices, parts, strict=True))
            forward = min(forward, rules.evaluations * dearest)
        return Prediction(forward, 0.0, at_most=True, seconds=rules.seconds)

    def _opening(self, counts: Sequence[int]) -> tuple[int, int]:
        """Samples, and pairs of permutations for each, of the first round; UserError if too few.

        Without rules they are all; 0 samples where their number is not known beforehand.
        """
        rules, pairs = self._rules, (self.sv_samples + 1) // 2
        if not rules.any:
            return self.batches.available(self.samples), pairs
        if self.reduction == "mean_plus_2_std":
            pairs = max(2, pairs)  # one does not tell what the draws add to the spread
        available = self.batches.count()
        samples = min(self.samples or available, available)
        self._check_samples(samples, available)
        price = 2 * pairs * samples * sum(counts)
        if rules.evaluations is not None and rules.evaluations < price:
            raise UserError(
                f"evaluations={rules.evaluations} are too few: the first round, {samples} samples "
                f"with {2 * pairs} permutations each, takes {price}. Allow more evaluations, or "
                "lower samples or sv_samples."
            )
        return samples, pairs

    def _check_samples(self, samples: int, available: int) -> None:
        """UserError where the rules can never be judged."""
        fewest = self._rules.fewest_samples
        if available < fewest:
            raise UserError(
                f"There are {available} samples to score on, but the rules of sampling need "
                f"{fewest} or more to estimate the total error. Give more (dataset.score), or "
                f"leave out {', '.join(RULES)}."
            )
        if samples < 2:
            raise UserError(
                f"samples={samples} do not tell the total error, which the rules of sampling need. "
                "Start with samples=2 or more."
            )

    @torch.no_grad()
    def draw(self, game: Game, first: int, pairs: range) -> tuple[torch.Tensor, torch.Tensor]:
        """Values of a batch, (samples, players), by these pairs of orders, and their variances."""
        if self.permutations is not None:
            orders = self._given(game)
            each = torch.stack(
                [game.walk(order.expand(game.samples, -1), 1)[0] for order in orders]
            )
            return each.mean(0), torch.zeros_like(each[0])
        each = torch.stack([game.walk(self._orders(game, first, p)).mean(0) for p in pairs])
        known = len(each) > 1
        return each.mean(0), each.var(0) / len(each) if known else torch.zeros_like(each[0])

    def _orders(self, game: Game, first: int, pair: int) -> torch.Tensor:
        """One order for each sample of a batch, (samples, players)."""
        streams = (
            np.random.default_rng([self.seed, number, pair])
            for number in range(first, first + game.samples)
        )
        orders = np.stack([stream.permutation(game.players) for stream in streams])
        return torch.as_tensor(orders, device=self.device)

    def _given(self, game: Game) -> torch.Tensor:
        """The orders that were asked for, (orders, players)."""
        given = torch.as_tensor(np.asarray(self.permutations), device=self.device)
        every = torch.arange(game.players, device=self.device)
        if given.ndim != 2 or not torch.equal(given.sort(1).values, every.expand(len(given), -1)):
            raise UserError(
                f"permutations must be orders of {game.players} units, (orders, {game.players}); "
                f"these have shape {tuple(given.shape)} or repeat a unit."
            )
        return given


class _Layer:
    """The draws of one layer: of all samples at once, or in rounds."""

    def __init__(
        self,
        metric: ShapleyAttributionMetric,
        where: tuple[Any, Players, bool],
        players: int,
        done: Callable[[int], None],
    ) -> None:
        self._metric, self._where, self._players, self._done = metric, where, players, done
        self._drawn: Drawn | None = None
        self._rounds = self._evaluations = 0
        self._seconds = 0.0

    def evaluations(self, samples: int, pairs: int) -> int:
        """The price of so many pairs of permutations for each of so many samples."""
        return 2 * self._players * samples * pairs

    def at_once(self, pairs: int) -> Estimate:
        """The scores by so many pairs for each sample; one pair does not tell their error."""
        known = self._metric.permutations is None and pairs > 1
        reducer = Reducer(self._metric.reduction, pairs, known)
        for drawn in self._walk(range(pairs)):
            reducer.add(*drawn)
        return reducer.estimate()

    def step(self, size: int, available: int, pairs: int) -> tuple[range, range]:
        """Numbers of the samples and of the pairs of a round that raises the size by ``size``."""
        if self._drawn is None or len(self._drawn.scores) < available:
            before = 0 if self._drawn is None else len(self._drawn.scores)
            return range(before, before + size), range(pairs)
        return range(available), range(self._drawn.draws, self._drawn.draws + size)

    def draw(self, samples: range, pairs: range) -> None:
        """One round."""
        started = clock()
        new = Drawn.of(self._walk(pairs, samples), len(pairs))
        if self._drawn is None:
            self._drawn = new
        else:
            self._drawn = (
                self._drawn.with_draws(new) if pairs.start else self._drawn.with_samples(new)
            )
        self.estimate = self._drawn.estimate(self._metric.reduction)
        self._rounds += 1
        self._evaluations += self.evaluations(len(samples), len(pairs))
        self._seconds += clock() - started

    def state(self, available: int) -> Sampled:
        """Return the state of the layer, for the rules."""
        assert self._drawn is not None
        samples, pairs = len(self._drawn.scores), self._drawn.draws
        used = samples == available
        size, most = (pairs, MOST) if used else (samples, available)
        return Sampled(
            self.estimate, self._rounds, used, size, most,
            self._evaluations / size, self._seconds / size,
        )  # fmt: skip

    def _walk(
        self, pairs: range, samples: range | None = None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, int]]:
        """The values of each part of the samples, their variances, and how many samples it has."""
        for game, part in self._metric._games(*self._where, numbers=samples):
            drawn = self._metric.draw(game, part.first, pairs)
            players = game.players
            del game  # before the next one is made: it is large
            yield *drawn, part.samples
            self._done(2 * len(pairs) * players * part.samples)
