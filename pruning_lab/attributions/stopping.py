"""When enough is known of the scores: how many more draws each layer gets."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pruning_lab.attributions.reduction import Estimate
from pruning_lab.errors import check_count, check_number

LEAST = 2
"""Pairs of draws a sample at the start: from two on their spread tells of the error."""

GROWTH = 8
"""A round at most multiplies the draws so far by this: what the first tells is uncertain."""


MOST = 1024
"""Pairs a sample at which sampling ends whatever the rules: scores may be tied, or all 0."""

DROWNED = 10.0
"""A larger relative error says no more than that nothing is known."""


@dataclass(frozen=True)
class Stopping:
    """Rules for ending the sampling of layers; what is None does not rule.

    A layer has enough when ``relative_error`` (of its scores, in the l2 norm, by the draws) is
    reached, or when the share ``separated`` of its players, those with the lowest scores, is
    separated from the rest: no 95 % interval of theirs reaches into one of the others. All end when
    ``evaluations`` (of masked samples, in all layers) or ``seconds`` are spent; before that they go
    where they lower the error most. With ``seconds`` results depend on the machine. No sample gets
    more than 1024 pairs of draws.
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
        """Whether there is any rule."""
        return any(rule is not None for rule in vars(self).values())


@dataclass(frozen=True)
class Sampled:
    """What is known of a layer after ``pairs`` of draws a sample, and what one more pair costs."""

    estimate: Estimate
    pairs: int
    evaluations: float
    seconds: float


def more_pairs(layers: Sequence[Sampled], rules: Stopping) -> list[int]:
    """How many more pairs of draws a sample each layer gets in the next round: 0, or 2 and more."""
    wanted = [_wanted(layer, rules) for layer in layers]
    limits = [(rules.evaluations, "evaluations"), (rules.seconds, "seconds")]
    for limit, unit in limits:
        if limit is not None:
            prices = [getattr(layer, unit) for layer in layers]
            left = limit - sum(p * layer.pairs for p, layer in zip(prices, layers, strict=True))
            wanted = _affordable(layers, wanted, prices, left)
    extra = [total - layer.pairs for total, layer in zip(wanted, layers, strict=True)]
    return [pairs if pairs >= LEAST else 0 for pairs in extra]


def short_of(layer: Sampled, rules: Stopping) -> bool:
    """Whether a layer has as many pairs as it may have, and no rule for its scores holds."""
    asked = rules.relative_error is not None or rules.separated is not None
    return asked and layer.pairs + LEAST > MOST and _enough(layer, rules) > layer.pairs


def _wanted(layer: Sampled, rules: Stopping) -> int:
    """How many pairs in all would do for a layer; no more than a round may bring."""
    enough = _enough(layer, rules)
    if enough <= layer.pairs or layer.pairs + LEAST > MOST:
        return layer.pairs
    most = min(enough, GROWTH * layer.pairs, MOST)
    return max(layer.pairs + LEAST, math.ceil(most))


def _enough(layer: Sampled, rules: Stopping) -> float:
    """With how many pairs in all a rule for the scores would hold, as far as can be told."""
    needs: list[float] = []
    relative = layer.estimate.relative_error
    if rules.relative_error is not None:  # the error falls with the root of the number of draws
        short = relative > rules.relative_error
        ratio = min(relative, DROWNED) / rules.relative_error
        needs.append(layer.pairs * ratio**2 if short else 0)
    if rules.separated is not None:
        needs.append(0 if is_separated(layer.estimate, rules.separated) else 2 * layer.pairs)
    return min(needs, default=math.inf)


def is_separated(estimate: Estimate, share: float) -> bool:
    """Whether the ``share`` of lowest scores is known to be lower than all others."""
    order = np.argsort(estimate.scores, kind="stable")
    lowest = round(share * len(order))
    half = estimate.half_widths("sampling_error")[order]
    low, high = (estimate.scores[order] + half)[:lowest], (estimate.scores[order] - half)[lowest:]
    return not (len(low) and len(high)) or bool(low.max() <= high.min())


def _affordable(
    layers: Sequence[Sampled], wanted: Sequence[int], prices: Sequence[float], left: float
) -> list[int]:
    """Totals of pairs that ``left`` pays for, so that the squared relative errors sum to the least.

    With a_k / q_k the squared error of layer k after q_k pairs that cost p_k each, q_k goes with
    sqrt(a_k / p_k) (Neyman, 1934), between what the layer has and what it wants.
    """
    weights = [
        math.sqrt(layer.pairs / price) * min(layer.estimate.relative_error, DROWNED)
        for layer, price in zip(layers, prices, strict=True)
    ]

    def totals(scale: float) -> list[int]:
        return [
            int(min(most, max(layer.pairs, scale * weight)))
            for layer, weight, most in zip(layers, weights, wanted, strict=True)
        ]

    def cost(scale: float) -> float:
        parts = zip(totals(scale), layers, prices, strict=True)
        return sum((total - layer.pairs) * price for total, layer, price in parts)

    low = 0.0
    high = max([m / w for m, w in zip(wanted, weights, strict=True) if w > 0], default=0.0)
    if cost(high) <= left:
        return totals(high)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) <= left else (low, middle)
    return totals(low)
