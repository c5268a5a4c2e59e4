"""Rules for ending the sampling: which layers get more samples or draws in the next round."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pruning_lab.attributions.estimation.reduction import Estimate
from pruning_lab.errors import check_count, check_number

MOST = 1024
"""Pairs of permutations per sample at which sampling always ends: scores may be tied."""

ENOUGH = 64
"""Samples from which on ``separated`` is judged: rare large values may be missing in fewer."""

SOME = 16
"""Samples from which on ``relative_error`` is judged, unless there are fewer: they may be alike."""

CONFIDENCE = 0.95
"""Confidence of ``separated``, over all units of a layer and all rounds."""

DROWNED = 10.0
"""Cap of the relative error in comparisons: from here on nothing is known of the scores."""


@dataclass(frozen=True)
class Stopping:
    """Rules for ending the sampling of layers; None: no such rule.

    A layer is finished when one of two rules for its total error (of the choice of the samples and
    of the draws) holds: ``relative_error`` (of its scores, l2 norms) is reached, or the share
    ``separated`` of units with the lowest scores is separated from the others (``is_separated``).
    All layers end when ``evaluations`` (of masked samples, in all layers) or ``seconds`` are spent;
    a remainder is spent where it lowers the error most. With ``seconds`` results depend on the
    machine.

    A round doubles the samples of a layer. When all are used, it doubles the pairs of permutations
    per sample, unless the rule could not hold even without any error of the draws.
    """

    relative_error: float | None = None
    separated: float | None = None
    evaluations: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        share = "between 0 and 1 (both excluded)"
        for name in ("relative_error", "separated"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), lambda number: 0 < number < 1, share)
        if self.evaluations is not None:
            check_count("evaluations", self.evaluations)
        if self.seconds is not None:
            check_number("seconds", self.seconds, lambda number: number > 0, "above 0")

    @property
    def any(self) -> bool:
        """True if there is any rule."""
        return any(rule is not None for rule in vars(self).values())

    @property
    def fewest_samples(self) -> int:
        """Number of samples from which on the rules can be judged."""
        return ENOUGH if self.separated is not None else 2


@dataclass(frozen=True)
class Sampled:
    """The state of a layer after some ``rounds``.

    ``size`` is what the next round may raise up to ``most``: the number of samples, or when
    ``all_samples`` are used the pairs of permutations per sample. ``evaluations`` and ``seconds``
    are the price of one of them.
    """

    estimate: Estimate
    rounds: int
    all_samples: bool
    size: int
    most: int
    evaluations: float
    seconds: float


def more(layers: Sequence[Sampled], rules: Stopping) -> list[int]:
    """Return by how much the next round raises each layer's size; 0 for finished layers."""
    wanted = [
        min(2 * layer.size, layer.most) if _goes_on(layer, rules) else layer.size
        for layer in layers
    ]
    for limit, unit in ((rules.evaluations, "evaluations"), (rules.seconds, "seconds")):
        if limit is not None:
            prices = [getattr(layer, unit) for layer in layers]
            left = limit - sum(p * layer.size for p, layer in zip(prices, layers, strict=True))
            wanted = _affordable(layers, wanted, prices, left)
    return [total - layer.size for total, layer in zip(wanted, layers, strict=True)]


def missed(layers: Sequence[Sampled], rules: Stopping) -> str | None:
    """A message on the layers that used all samples without reaching their rule; None if none."""
    short = [
        layer
        for layer in layers
        if layer.all_samples and _asked(rules) and not _holds(layer, rules)
    ]
    if not short:
        return None
    worst = max((layer.estimate for layer in short), key=lambda estimate: estimate.relative_error)
    due = ""
    if worst.sampling_error is not None:
        left = _without_draws(worst).relative_error
        due = f", of which {left:.3g} comes from which samples were chosen"
    asked = " or ".join(
        f"{name}={getattr(rules, name)}"
        for name in ("relative_error", "separated")
        if getattr(rules, name) is not None
    )
    return (
        f"{len(short)} of {len(layers)} layers miss {asked} with all score samples: the largest "
        f"relative error is {worst.relative_error:.3g}{due}. The run continues with these scores. "
        "Relax the rule, or give more samples to score on (dataset.score; where dataset.train is "
        "null, they are missing from the training data then)."
    )


def is_separated(estimate: Estimate, share: float, rounds: int = 1) -> bool:
    """Return True if the ``share`` of units with the lowest scores is separated from all others.

    They are if no interval of the total error of the lowest reaches above the lower end of one of
    the others. The intervals have the confidence 1 - 0.05 / (units * rounds * (rounds + 1)): by
    Bonferroni over the units and over any number of rounds, of which this is number ``rounds``, a
    wrong separation has a probability of at most 5 %, as far as single intervals cover. False with
    fewer than 64 samples. A unit with the same score in all samples counts as certain. True for a
    share that no unit or every unit belongs to; equal bounds count as separated.
    """
    units = len(estimate.scores)
    order = np.argsort(estimate.scores, kind="stable")
    lowest = round(share * units)
    if lowest in (0, units):
        return True
    if _seen(estimate) < ENOUGH:
        return False
    level = 1 - (1 - CONFIDENCE) / (units * rounds * (rounds + 1))
    low, high = (bound[order] for bound in estimate.interval(level=level))
    return bool(high[:lowest].max() <= low[lowest:].min())


def _goes_on(layer: Sampled, rules: Stopping) -> bool:
    """Return True if no rule of the layer holds yet, and one still can."""
    if layer.size >= layer.most or _holds(layer, rules):
        return False
    if not layer.all_samples or not _asked(rules):
        return True
    return _holds(replace(layer, estimate=_without_draws(layer.estimate)), rules)


def _asked(rules: Stopping) -> bool:
    return rules.relative_error is not None or rules.separated is not None


def _holds(layer: Sampled, rules: Stopping) -> bool:
    """Return True if one of the rules for the scores holds."""
    estimate, most = layer.estimate, rules.relative_error
    judged = layer.all_samples or _seen(estimate) >= SOME
    if judged and most is not None and estimate.relative_error <= most:
        return True
    return rules.separated is not None and is_separated(estimate, rules.separated, layer.rounds)


def _seen(estimate: Estimate) -> float:
    """Number of samples that the total error is estimated from; 0 where it is unknown."""
    return 0.0 if estimate.degrees is None else float(estimate.degrees) + 1


def _without_draws(estimate: Estimate) -> Estimate:
    """Return the estimate with the total error that remains if the draws have none.

    0 if the error of the draws is unknown: all of it may be theirs.
    """
    error, draws = estimate.error, estimate.sampling_error
    if error is None:
        return estimate
    left = np.zeros_like(error) if draws is None else np.sqrt(np.clip(error**2 - draws**2, 0, None))
    return replace(estimate, error=left)


def _reducible(layer: Sampled) -> float:
    """Return the relative error that the next round lowers: in total, or of the draws."""
    estimate = layer.estimate
    if layer.all_samples and estimate.sampling_error is not None:
        estimate = replace(estimate, error=estimate.sampling_error)
    return min(estimate.relative_error, DROWNED)


def _affordable(
    layers: Sequence[Sampled], wanted: Sequence[int], prices: Sequence[float], left: float
) -> list[int]:
    """Return sizes within the budget ``left`` that minimize the sum of squared relative errors.

    If layer k of size q_k has the squared error a_k / q_k and costs p_k per unit of size, q_k is
    proportional to sqrt(a_k / p_k) (Neyman, 1934), between the present and the wanted size.
    """
    weights = [
        math.sqrt(layer.size / price) * _reducible(layer)
        for layer, price in zip(layers, prices, strict=True)
    ]

    def totals(scale: float) -> list[int]:
        return [
            int(min(most, max(layer.size, scale * weight)))
            for layer, weight, most in zip(layers, weights, wanted, strict=True)
        ]

    def cost(scale: float) -> float:
        parts = zip(totals(scale), layers, prices, strict=True)
        return sum((total - layer.size) * price for total, layer, price in parts)

    low = 0.0
    high = max([m / w for m, w in zip(wanted, weights, strict=True) if w > 0], default=0.0)
    if cost(high) <= left:
        return totals(high)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) <= left else (low, middle)
    return totals(low)
