"""Sampled Shapley value of each unit: mean loss increase over random permutations."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from functools import partial
from time import perf_counter as clock
from typing import Any, ClassVar

import numpy as np
import torch

from pruning_lab.attributions.base import Progress
from pruning_lab.attributions.estimation.reduction import REDUCTIONS, Estimate, Reducer
from pruning_lab.attributions.estimation.rounds import Drawn
from pruning_lab.attributions.estimation.stopping import MOST, Sampled, Stopping, missed, more
from pruning_lab.attributions.evidence.game import Game
from pruning_lab.attributions.evidence.masks import MaskMetric
from pruning_lab.attributions.unit_groups import UnitGroups
from pruning_lab.errors import UserError, check_count, check_seed
from pruning_lab.profiling.passes import Prediction
from pruning_lab.runtime import distributed

log = logging.getLogger(__name__)

RULES = tuple(field.name for field in fields(Stopping))


class ShapleyAttributionMetric(MaskMetric):
    """Sampled Shapley value of every unit: mean over permutations of L(S without u) - L(S).

    The units of the layer are set to 0 one after another in the order of a random permutation; a
    unit's score is the mean loss increase when it is removed (Ancona et al., arXiv 2006.01795). Per
    sample the scores sum to L(no unit) - L(all units).

    Every sample has ``sv_samples`` (default 5) permutations of its own, in antithetic pairs (one
    and its reverse; odd numbers are rounded up), so that their errors average out; TorchPruner
    shares its permutations among all samples. ``permutations`` (n, units), if given, are the
    removal orders of every sample instead. ``samples`` limits the number of samples (default: all);
    with a rule of ``Stopping`` it limits the first round only. A pair's random stream is seeded by
    (seed, sample number, pair number): scores do not depend on batch sizes. Cost: ``sv_samples`` x
    units evaluations per sample of the part of the model after the layer.
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
            raise UserError(f"Given permutations, nothing is sampled: omit {', '.join(RULES)}.")
        if self._rules.any and self.reduction not in REDUCTIONS:
            raise UserError(
                f"With reduction={self.reduction} the errors of the scores are unknown: "
                f"{', '.join(RULES)} need one of {', '.join(REDUCTIONS)}."
            )

    @property
    def _rules(self) -> Stopping:
        return Stopping(**{rule: getattr(self, rule) for rule in RULES})

    def _check_unit_groups(self, unit_groups: Sequence[UnitGroups], after_activation: bool) -> None:
        self._opening(self._opened(unit_groups, after_activation)[1])

    def _estimate(
        self, unit_groups: Sequence[UnitGroups], after_activation: bool, progress: Progress
    ) -> list[Estimate]:
        graph, counts = self._opened(unit_groups, after_activation)
        samples, pairs = self._opening(counts)
        layers = [
            _Layer(self, (graph, groups, after_activation), count, partial(progress.done, index))
            for index, (groups, count) in enumerate(zip(unit_groups, counts, strict=True))
        ]
        if self._rules.any:
            return self._in_rounds(layers, samples, pairs, progress)
        for index, layer in enumerate(layers):
            progress.planned(index, layer.evaluations(samples, pairs))
        estimates = []
        for index, layer in enumerate(layers):
            estimates.append(layer.at_once(pairs))
            progress.error(index, estimates[-1].relative_error)
        return estimates

    def _in_rounds(
        self, layers: "Sequence[_Layer]", samples: int, pairs: int, progress: Progress
    ) -> list[Estimate]:
        """Score in rounds: more samples, then more permutations, until the rules hold."""
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
            rounds = distributed.agreed(
                lambda: more([layer.state(available) for layer in layers], rules)
            )
        if message := missed([layer.state(available) for layer in layers], rules):
            log.warning(message)
        return [layer.estimate for layer in layers]

    def _predict(self, unit_groups: Sequence[UnitGroups], after_activation: bool) -> Prediction:
        """Upper bound: units that are 0 in a sample are skipped, rules may end sampling early.

        Every round of additional permutations reads the samples again.
        """
        rules, parts = self._rules, self._parts(unit_groups, after_activation)
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
        """Number of samples, and of pairs per sample, in the first round; UserError if too few.

        Without rules it is the only round; 0 samples if their number is not known beforehand.
        """
        rules, pairs = self._rules, (self.sv_samples + 1) // 2
        if not rules.any:
            return self.batches.available(self.samples), pairs
        if self.reduction == "mean_plus_2_std":
            pairs = max(2, pairs)  # one cannot separate the permutations' share of the spread
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
        """Raise UserError if the rules can never be judged."""
        fewest = self._rules.fewest_samples
        if available < fewest:
            raise UserError(
                f"There are {available} samples to score on, but the sampling rules need {fewest} "
                "or more to estimate the total error. Give more (dataset.score), or omit "
                f"{', '.join(RULES)}."
            )
        if samples < 2:
            raise UserError(
                f"samples={samples} is too few to estimate the total error, which the sampling "
                "rules need. Start with samples=2 or more."
            )

    @torch.no_grad()
    def draw(self, game: Game, first: int, pairs: range) -> tuple[torch.Tensor, torch.Tensor]:
        """Values of a batch by these pairs, (samples, players), and their variances."""
        if self.permutations is not None:
            orders = self._given(game)
            values = torch.stack(
                [game.walk(order.expand(game.samples, -1), 1)[0] for order in orders]
            )
            return values.mean(0), torch.zeros_like(values[0])
        values = torch.stack([game.walk(self._orders(game, first, p)).mean(0) for p in pairs])
        known = len(values) > 1
        return values.mean(0), values.var(0) / len(values) if known else torch.zeros_like(values[0])

    def _orders(self, game: Game, first: int, pair: int) -> torch.Tensor:
        """One permutation per sample of a batch, (samples, players)."""
        streams = (
            np.random.default_rng([self.seed, number, pair])
            for number in range(first, first + game.samples)
        )
        orders = np.stack([stream.permutation(game.players) for stream in streams])
        return torch.as_tensor(orders, device=self.device)

    def _given(self, game: Game) -> torch.Tensor:
        """The ``permutations`` option, checked, (permutations, players)."""
        given = torch.as_tensor(np.asarray(self.permutations), device=self.device)
        units = torch.arange(game.players, device=self.device)
        if given.ndim != 2 or not torch.equal(given.sort(1).values, units.expand(len(given), -1)):
            raise UserError(
                f"permutations must have shape (n, {game.players}), each row a permutation of all "
                f"units; these have shape {tuple(given.shape)} or repeat a unit."
            )
        return given


class _Layer:
    """The sampled values of one layer, computed for all samples at once or in rounds."""

    def __init__(
        self,
        metric: ShapleyAttributionMetric,
        where: tuple[Any, UnitGroups, bool],
        players: int,
        done: Callable[[int], None],
    ) -> None:
        self._metric, self._where, self._players, self._done = metric, where, players, done
        self._drawn: Drawn | None = None
        self._rounds = self._evaluations = 0
        self._seconds = 0.0

    def evaluations(self, samples: int, pairs: int) -> int:
        """Number of evaluations for these samples with these pairs of permutations each."""
        return 2 * self._players * samples * pairs

    def at_once(self, pairs: int) -> Estimate:
        """Scores by ``pairs`` pairs per sample; with one pair their sampling error is unknown."""
        known = self._metric.permutations is None and pairs > 1
        reducer = Reducer(self._metric.reduction, pairs, known)
        for drawn in self._walk(range(pairs)):
            reducer.add(*drawn)
        return reducer.estimate()

    def step(self, size: int, available: int, pairs: int) -> tuple[range, range]:
        """Numbers of the samples and pairs of a round that adds ``size`` of one of the two."""
        if self._drawn is None or len(self._drawn.scores) < available:
            before = 0 if self._drawn is None else len(self._drawn.scores)
            return range(before, before + size), range(pairs)
        return range(available), range(self._drawn.draws, self._drawn.draws + size)

    def draw(self, samples: range, pairs: range) -> None:
        """Run one round and update the estimate."""
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
        """State of the layer, for the sampling rules."""
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
        """Values of each part of the samples, their variances, and its number of samples."""
        for game, part in self._metric._games(*self._where, numbers=samples):
            drawn = self._metric.draw(game, part.first, pairs)
            players = game.players
            del game  # free its memory before the next one is made
            yield *drawn, part.samples
            self._done(2 * len(pairs) * players * part.samples)
