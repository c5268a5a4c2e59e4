"""What a unit is worth on average over all orders in which the layer can lose its units."""

import logging
from collections.abc import Callable, Sequence
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
from pruning_lab.attributions.reduction import REDUCTIONS, Estimate, Reducer, estimate
from pruning_lab.attributions.stopping import LEAST, MOST, Sampled, Stopping, more_pairs, short_of
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
    sample instead, as removal orders. ``samples`` limits how many samples are read. The random
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
        rules, (graph, counts) = self._rules, self._opened(players, behind)
        layers = [_Layer(self, graph, each, behind) for each in players]
        rounds = [self._opening(counts)] * len(layers)
        if rules.seconds is not None:
            log.warning("Sampling ends after %s s: it cannot be repeated exactly.", rules.seconds)
        while any(rounds):
            for index, more in enumerate(rounds):
                progress.planned(
                    index, 2 * more * counts[index] * self.batches.available(self.samples)
                )
            for index, (layer, more) in enumerate(zip(layers, rounds, strict=True)):
                if more:
                    layer.draw(more, partial(progress.done, index))
                    progress.error(index, layer.estimate().relative_error)
            rounds = ranks.agreed(partial(self._more, layers)) if rules.any else []
        if any(short_of(layer.sampled(), rules) for layer in layers):
            log.warning("Some scores are not as sure as was asked after %d pairs of orders.", MOST)
        return [layer.estimate() for layer in layers]

    def _more(self, layers: "Sequence[_Layer]") -> list[int]:
        """How many more pairs of orders each layer gets; it may depend on the time."""
        return more_pairs([layer.sampled() for layer in layers], self._rules)

    def _predict(self, players: Sequence[Players], behind: bool) -> Prediction:
        """At most: walks skip units that a sample leaves at 0, rules end before their last round.

        A round reads the samples anew, and has at least so many pairs as tell of the error.
        """
        rules, parts = self._rules, self._parts(players, behind)
        samples = self.batches.count(self.samples)
        pairs = self._opening([part.players for part in parts])
        if self.permutations is not None:
            walks, ways = len(self.permutations), 1
        else:
            walks, ways = pairs, 2
        once = [part.once for part in parts]
        walk = [part.walk(ways) for part in parts]
        if not rules.any:
            total = sum(once) + walks * sum(walk)
            return Prediction(samples * total, 0.0, at_most=True)
        prices = [w + o / LEAST for w, o in zip(walk, once, strict=True)]
        forward = samples * max(MOST, pairs) * sum(prices)
        if rules.evaluations is not None:
            dearest = max(p / (2 * part.players) for p, part in zip(prices, parts, strict=True))
            forward = min(forward, rules.evaluations * dearest)
        return Prediction(forward, 0.0, at_most=True, seconds=rules.seconds)

    def _opening(self, counts: Sequence[int]) -> int:
        """Pairs of orders in the first round, which a budget must do for."""
        rules, pairs = self._rules, (self.sv_samples + 1) // 2
        if not rules.any:
            return pairs
        pairs, price = max(LEAST, pairs), 2 * sum(counts) * self.batches.available(self.samples)
        if rules.evaluations is not None and price:
            pairs = min(pairs, rules.evaluations // price)
            if pairs < LEAST:
                raise UserError(
                    f"evaluations={rules.evaluations} do not do for {LEAST} pairs of orders a "
                    f"sample, which tell of the error; these take {LEAST * price}. Give more, or "
                    "use fewer samples."
                )
        return pairs

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
        known = len(each) >= LEAST
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
    """The draws of one layer, in rounds."""

    def __init__(
        self, metric: ShapleyAttributionMetric, graph: Any, players: Players, behind: bool
    ) -> None:
        self._metric = metric
        self._where = (graph, players, behind)
        self._rounds: list[Reducer] = []
        self._evaluations = self._seconds = 0.0

    def draw(self, more: int, done: Callable[[int], None]) -> None:
        """Another round: so many more pairs of orders for each sample."""
        reducer, started = Reducer(self._metric.reduction, more), clock()
        before = self.pairs
        for game, part in self._metric._games(*self._where):
            drawn = self._metric.draw(game, part.first, range(before, before + more))
            reducer.add(*drawn, part.samples)
            evaluations = 2 * more * game.players * part.samples
            del game  # before the next one is made: it is large
            self._evaluations += evaluations
            done(evaluations)
        self._rounds.append(reducer)
        self._seconds += clock() - started

    def estimate(self) -> Estimate:
        """The values so far; with a single pair of orders nothing is known of their error."""
        known = self._metric.permutations is None and self._rounds[0].draws >= LEAST
        return estimate(self._rounds, known)

    @property
    def pairs(self) -> int:
        """Pairs of orders that every sample had so far."""
        return sum(each.draws for each in self._rounds)

    def sampled(self) -> Sampled:
        """The values so far, and what a pair of orders costs."""
        pairs = self.pairs
        return Sampled(self.estimate(), pairs, self._evaluations / pairs, self._seconds / pairs)
