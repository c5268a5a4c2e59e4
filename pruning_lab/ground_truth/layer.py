"""Remove the units of one layer in the order of each criterion, and at random."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pruning_lab.attributions.evidence.removals import first_of, sets_of
from pruning_lab.attributions.unit_groups import UnitGroups
from pruning_lab.errors import UserError, check_count, check_counts, check_number
from pruning_lab.ground_truth.removals import Removals, at_shares


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the removals to measure.

    ``shares`` of a layer's units are removed in the order of each criterion and in ``draws`` random
    orders. All sets of a size in ``sizes`` are measured where a layer has at most ``sets`` of them.
    The greedy oracle removes its first ``greedy`` units where a layer has at most ``sets`` units.
    """

    shares: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5)
    draws: int = 16
    sizes: Sequence[int] = (1, 2)
    sets: int = 64
    greedy: int = 2

    def __post_init__(self) -> None:
        for name, least in (("draws", 3), ("sets", 1), ("greedy", 0)):
            check_count(f"truth.{name}", getattr(self, name), least)
        check_counts("truth.sizes", self.sizes, (1, 2, 3))
        if not isinstance(self.shares, Sequence) or isinstance(self.shares, str) or not self.shares:
            raise UserError(
                f"truth.shares={self.shares} is not possible; it is a list, [0.1,0.3,0.5] for "
                "example."
            )
        for share in self.shares:
            check_number("truth.shares", share, lambda v: 0 < v < 1, "between 0 and 1")
        if list(self.shares) != sorted(set(self.shares)):
            raise UserError(f"truth.shares={list(self.shares)} is not possible; shares must rise.")


@dataclass(frozen=True)
class Curve:
    """Mean harm over the samples after each number of removals, (counts,).

    ``points`` is what the primary measure loses, in percentage points, ``nats`` the rise of the
    capped loss.
    """

    points: np.ndarray
    nats: np.ndarray


@dataclass
class LayerTruth:
    """Measurements in a layer (or group of layers).

    ``forward`` maps a criterion to its curve after ``counts`` removals, lowest score first;
    ``reverse`` to its curve after the last of ``counts``, highest score first; ``random`` has one
    curve for each random order. ``sets`` maps a size to the rises of the capped loss (samples,
    sets) of all sets of that size; ``greedy`` lists the units that the greedy oracle removes, in
    order.
    """

    layer: str
    units: int
    counts: np.ndarray
    scores: Mapping[str, np.ndarray]
    random: list[Curve]
    forward: dict[str, Curve]
    reverse: dict[str, Curve]
    sets: dict[int, np.ndarray] = field(default_factory=dict)
    greedy: list[int] = field(default_factory=list)


def judge(
    layer: str,
    unit_groups: UnitGroups,
    scores: Mapping[str, np.ndarray],
    removals: Removals,
    settings: Settings,
) -> LayerTruth:
    """Remove the units of a layer in the order of each criterion, and in random orders.

    ``scores`` maps a criterion to its scores (units,). All calls with the same number of units use
    the same random orders. Also measures all small sets and runs the greedy oracle; see Settings.
    """
    units = len(next(iter(scores.values())))
    counts, stream = at_shares(units, settings.shares), np.random.default_rng(0)
    ascending = [np.argsort(values, kind="stable") for values in scores.values()]
    drawn = [stream.permutation(units) for _ in range(settings.draws)]
    sets = [first_of(order, counts) for order in [*ascending, *drawn]]
    sets += [first_of(order[::-1], counts[-1:]) for order in ascending]
    harms = removals.harm(unit_groups, sets)
    curves = [Curve(100 * harm.lost.mean(0), harm.nats.mean(0)) for harm in harms]
    last = len(scores) + len(drawn)
    truth = LayerTruth(
        layer, units, counts, scores, random=curves[len(scores) : last],
        forward=dict(zip(scores, curves, strict=False)),
        reverse=dict(zip(scores, curves[last:], strict=True)),
    )  # fmt: skip
    for size in settings.sizes:
        if size < units and math.comb(units, size) <= settings.sets:
            (harm,) = removals.harm(unit_groups, [sets_of(units, size)])
            truth.sets[size] = harm.nats
    if units <= settings.sets:
        truth.greedy = _greedy(unit_groups, units, removals, min(settings.greedy, units // 2))
    return truth


def _greedy(unit_groups: UnitGroups, units: int, removals: Removals, steps: int) -> list[int]:
    """Remove one unit after another, each time the one that raises the capped loss least."""
    removed: list[int] = []
    for _ in range(steps):
        remaining = [unit for unit in range(units) if unit not in removed]
        sets = np.eye(units, dtype=bool)[remaining]
        sets[:, removed] = True
        (harm,) = removals.harm(unit_groups, [sets])
        removed.append(remaining[int(harm.nats.mean(0).argmin())])
    return removed
