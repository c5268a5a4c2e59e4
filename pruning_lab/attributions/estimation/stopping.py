"""Rules for ending the sampling: which layers get more samples or draws in the next round."""

from collections.abc import Collection
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
        allowed = "between 0 and 1 (both excluded)"
        for name, share in self.of_error.items():
            check_number(name, share, lambda number: 0 < number < 1, allowed)
        if self.evaluations is not None:
            check_count("evaluations", self.evaluations)
        if self.seconds is not None:
            check_number("seconds", self.seconds, lambda number: number > 0, "above 0")

    @property
    def any(self) -> bool:
        """True if there is any rule."""
        return any(rule is not None for rule in vars(self).values())

    @property
    def of_error(self) -> dict[str, float]:
        """The rules for the total error of a layer, by name."""
        rules = {"relative_error": self.relative_error, "separated": self.separated}
        return {name: share for name, share in rules.items() if share is not None}

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


def growth(layers: Collection[Sampled], rules: Stopping) -> list[int]:
    """Return by how much the next round raises each layer's size; 0 for finished layers."""
    sizes = np.array([layer.size for layer in layers])
    most = [layer.most if _goes_on(layer, rules) else layer.size for layer in layers]
    wanted = np.minimum(2 * sizes, most)
    for limit, unit in ((rules.evaluations, "evaluations"), (rules.seconds, "seconds")):
        if limit is not None:
            prices = np.array([getattr(layer, unit) for layer in layers])
            wanted = _affordable(layers, wanted, prices, limit - (prices * sizes).sum())
    return (wanted - sizes).tolist()


def missed(layers: Collection[Sampled], rules: Stopping) -> str | None:
    """Return a message on layers that used all samples without reaching their rule, if any."""
    asked = rules.of_error
    short = [layer for layer in layers if asked and layer.all_samples and not _holds(layer, rules)]
    if not short:
        return None
    worst = max((layer.estimate for layer in short), key=lambda estimate: estimate.relative_error)
    due = ""
    if worst.sampling_error is not None:
        left = _without_draws(worst).relative_error
        due = f", of which {left:.3g} comes from which samples were chosen"
    missing = " or ".join(f"{name}={share}" for name, share in asked.items())
    return (
        f"{len(short)} of {len(layers)} layers miss {missing} with all score samples: the largest "
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
    if not layer.all_samples or not rules.of_error:
        return True
    return _holds(replace(layer, estimate=_without_draws(layer.estimate)), rules)


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
    assert error is not None  # there are 2 samples or more
    left = np.zeros_like(error) if draws is None else np.sqrt(np.clip(error**2 - draws**2, 0, None))
    return replace(estimate, error=left)


def _reducible(layer: Sampled) -> float:
    """Return the relative error that the next round lowers: in total, or of the draws."""
    estimate = layer.estimate
    if layer.all_samples and estimate.sampling_error is not None:
        estimate = replace(estimate, error=estimate.sampling_error)
    return min(estimate.relative_error, 10.0)  # above, nothing is known of the scores


def _affordable(
    layers: Collection[Sampled], wanted: np.ndarray, prices: np.ndarray, left: float
) -> np.ndarray:
    """Return sizes within the budget ``left`` that minimize the sum of squared relative errors.

    If layer k of size q_k has the squared error a_k / q_k and costs p_k per unit of size, q_k is
    proportional to sqrt(a_k / p_k) (Neyman, 1934), between the present and the wanted size.
    """
    sizes = np.array([layer.size for layer in layers])
    weights = np.sqrt(sizes / prices) * [_reducible(layer) for layer in layers]

    def totals(scale: float) -> np.ndarray:
        return np.clip(scale * weights, sizes, wanted).astype(int)

    def cost(scale: float) -> float:
        return ((totals(scale) - sizes) * prices).sum()

    ratios = np.divide(wanted, weights, out=np.zeros_like(weights), where=weights > 0)
    low, high = 0.0, float(ratios.max(initial=0.0))
    if cost(high) <= left:
        return totals(high)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) <= left else (low, middle)
    return totals(low)
