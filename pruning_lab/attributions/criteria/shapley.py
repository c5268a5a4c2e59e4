"""Sampled Shapley value of each unit: mean loss increase over random permutations."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from time import perf_counter as clock

import numpy as np
import torch

from pruning_lab.attributions.base import Progress
from pruning_lab.attributions.estimation.reduction import REDUCTIONS, Drawn, Estimate, Reducer
from pruning_lab.attributions.estimation.stopping import MOST, Sampled, Stopping, growth, missed
from pruning_lab.attributions.evidence.game import Game
from pruning_lab.attributions.evidence.masks import MaskMetric
from pruning_lab.attributions.observation.batches import Part
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
    with a rule for ending the sampling (``relative_error``, ``separated``, ``evaluations``,
    ``seconds``: see ``Stopping``) it limits the first round only. A pair's random stream is seeded
    by (``seed``, sample number, pair number): scores do not depend on batch sizes. Cost:
    ``sv_samples`` x units evaluations per sample of the part of the model after the layer.
    """

    options = ("sv_samples", "permutations", *RULES, *MaskMetric.options, "seed")
    sv_samples: int = 5
    seed: int = 0
    permutations: np.ndarray | Sequence[Sequence[int]] | None = None
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
        self._first_round(self._opened(unit_groups, after_activation)[1])

    def _estimate(
        self, unit_groups: Sequence[UnitGroups], after_activation: bool, progress: Progress
    ) -> list[Estimate]:
        graph, counts = self._opened(unit_groups, after_activation)
        samples, pairs = self._first_round(counts)
        layers = []
        for index, (groups, count) in enumerate(zip(unit_groups, counts, strict=True)):
            games = partial(self._games, graph, groups, after_activation)
            nothing = torch.zeros(0, count, dtype=torch.float64)
            done, drawn = partial(progress.done, index), Drawn(nothing, nothing, pairs)
            layers.append(_Layer(self, games, done, drawn))
        if self._rules.any:
            return self._in_rounds(layers, samples, progress)
        for index, layer in enumerate(layers):
            progress.planned(index, layer.evaluations(samples, pairs))
        estimates = []
        for index, layer in enumerate(layers):
            estimates.append(layer.at_once())
            progress.error(index, estimates[-1].relative_error)
        return estimates

    def _in_rounds(
        self, layers: "Sequence[_Layer]", samples: int, progress: Progress
    ) -> list[Estimate]:
        """Score in rounds: more samples, then more permutations, until the rules hold."""
        rules, available = self._rules, self.batches.count()
        if rules.seconds is not None:
            log.warning("Sampling ends after %s s: it cannot be repeated exactly.", rules.seconds)
        sizes, states = [samples] * len(layers), dict[int, Sampled]()
        while any(sizes):
            steps = {i: layers[i].step(size, available) for i, size in enumerate(sizes) if size}
            for index, step in steps.items():
                progress.planned(index, layers[index].evaluations(*map(len, step)))
            for index, step in steps.items():
                states[index] = layers[index].draw(*step, available)
                progress.error(index, states[index].estimate.relative_error)
            sizes = distributed.agreed(partial(growth, states.values(), rules))
        if message := missed(states.values(), rules):
            log.warning(message)
        return [state.estimate for state in states.values()]

    def _predict(self, unit_groups: Sequence[UnitGroups], after_activation: bool) -> Prediction:
        """Upper bound: units that are 0 in a sample are skipped, rules may end sampling early.

        Every round of additional permutations reads the samples again.
        """
        rules, parts = self._rules, self._parts(unit_groups, after_activation)
        _, pairs = self._first_round([part.players for part in parts])
        if not rules.any:
            given = self.permutations
            walks, ways = (pairs, 2) if given is None else (len(given), 1)
            once, walk = sum(part.once for part in parts), sum(part.walk(ways) for part in parts)
            total = self.batches.count(self.samples) * (once + walks * walk)
            return Prediction(total, at_most=True)
        prices = [part.walk(2) + part.once for part in parts]
        forward = self.batches.count() * max(MOST, pairs) * sum(prices)
        if rules.evaluations is not None:
            dearest = max(p / (2 * part.players) for p, part in zip(prices, parts, strict=True))
            forward = min(forward, rules.evaluations * dearest)
        return Prediction(forward, at_most=True, seconds=rules.seconds)

    def _first_round(self, counts: Sequence[int]) -> tuple[int, int]:
        """Return the first round's numbers of samples and of pairs; UserError if too few.

        Without rules it is the only round; 0 samples if their number is not known beforehand.
        """
        rules, pairs = self._rules, (self.sv_samples + 1) // 2
        if not rules.any:
            return self.batches.available(self.samples), pairs
        if self.reduction == "mean_plus_2_std":
            pairs = max(2, pairs)  # one cannot separate the permutations' share of the spread
        available = self.batches.count()
        samples = min(self.samples or available, available)
        if available < rules.fewest_samples:
            raise UserError(
                f"There are {available} samples to score on, but the sampling rules need "
                f"{rules.fewest_samples} or more to estimate the total error. Give more "
                f"(dataset.score), or omit {', '.join(RULES)}."
            )
        if samples < 2:
            raise UserError(
                f"samples={samples} is too few to estimate the total error, which the sampling "
                "rules need. Start with samples=2 or more."
            )
        price = 2 * pairs * samples * sum(counts)
        if rules.evaluations is not None and rules.evaluations < price:
            raise UserError(
                f"evaluations={rules.evaluations} are too few: the first round, {samples} samples "
                f"with {2 * pairs} permutations each, takes {price}. Allow more evaluations, or "
                "lower samples or sv_samples."
            )
        return samples, pairs

    @torch.no_grad()
    def draw(self, game: Game, first: int, pairs: range) -> tuple[torch.Tensor, torch.Tensor]:
        """Return values (samples, players): their means over ``pairs``, and the means' variances.

        ``first`` is the number of the first sample.
        """
        if self.permutations is None:
            draws = [game.walk(self._permutations(game, first, pair)).mean(0) for pair in pairs]
        else:
            draws = [game.walk(row.expand(game.samples, -1), 1)[0] for row in self._given(game)]
        values = torch.stack(draws)
        if self.permutations is None and len(values) > 1:
            return values.mean(0), values.var(0) / len(values)
        return values.mean(0), torch.zeros_like(values[0])

    def _permutations(self, game: Game, first: int, pair: int) -> torch.Tensor:
        """Draw one permutation per sample of a batch, (samples, players)."""
        numbers = range(first, first + game.samples)
        streams = [np.random.default_rng([self.seed, number, pair]) for number in numbers]
        drawn = np.stack([stream.permutation(game.players) for stream in streams])
        return torch.as_tensor(drawn, device=self.device)

    def _given(self, game: Game) -> torch.Tensor:
        """Return the ``permutations`` option, checked, (permutations, players)."""
        given = torch.as_tensor(np.asarray(self.permutations), device=self.device)
        units = torch.arange(game.players, device=self.device)
        if given.ndim != 2 or not torch.equal(given.sort(1).values, units.expand(len(given), -1)):
            raise UserError(
                f"permutations must have shape (n, {game.players}), each row a permutation of all "
                f"units; these have shape {tuple(given.shape)} or repeat a unit."
            )
        return given


@dataclass
class _Layer:
    """The sampled values of one layer, computed for all samples at once or in rounds."""

    metric: ShapleyAttributionMetric
    games: Callable[..., Iterator[tuple[Game, Part]]]
    done: Callable[[int], None]
    drawn: Drawn
    rounds: int = 0
    seconds: float = 0.0

    def evaluations(self, samples: int, pairs: int) -> int:
        """Return the number of evaluations for these samples with these pairs each."""
        return 2 * self.drawn.scores.shape[1] * samples * pairs

    def at_once(self) -> Estimate:
        """Return the scores of all samples; with one pair their sampling error is unknown."""
        pairs = self.drawn.draws
        known = self.metric.permutations is None and pairs > 1
        reducer = Reducer(self.metric.reduction, pairs, known)
        for values in self._values(None, range(pairs)):
            reducer.add(*values)
        return reducer.estimate()

    def step(self, size: int, available: int) -> tuple[range, range]:
        """Return the numbers of samples and pairs of a round that adds ``size`` of one of them."""
        samples, pairs = len(self.drawn.scores), self.drawn.draws
        if samples < available:
            return range(samples, samples + size), range(pairs)
        return range(available), range(pairs, pairs + size)

    def draw(self, samples: range, pairs: range, available: int) -> Sampled:
        """Run one round; return the layer's state after it."""
        started = clock()
        new = Drawn.of(self._values(samples, pairs), len(pairs))
        self.drawn = self.drawn.with_draws(new) if pairs.start else self.drawn.with_samples(new)
        estimate = self.drawn.estimate(self.metric.reduction)
        self.rounds += 1
        self.seconds += clock() - started
        used, draws = len(self.drawn.scores), self.drawn.draws
        size, most = (draws, MOST) if used == available else (used, available)
        evaluations = self.evaluations(used, draws) / size
        return Sampled(
            estimate, self.rounds, used == available, size, most, evaluations, self.seconds / size
        )

    def _values(
        self, samples: range | None, pairs: range
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, int]]:
        """Yield the values of each part of the samples, and its number of samples on all ranks."""
        for game, part in self.games(numbers=samples):
            drawn = self.metric.draw(game, part.first, pairs)
            del game  # free its memory before the next one is made
            yield *drawn, part.samples
            self.done(self.evaluations(part.samples, len(pairs)))
