"""What really happens in one layer when its units go as each criterion says."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pruning_lab.attributions.players import Players
from pruning_lab.attributions.removals import first_of, sets_of
from pruning_lab.errors import check_count, check_counts
from pruning_lab.truth.removals import Removals, grid, mean_rise


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How closely it is looked.

    Curves are measured at ``points`` numbers of removed units; ``draws`` random orders stand for
    chance. All sets of a size in ``sizes`` are tried where a layer has no more than ``sets``
    of them. The greedy oracle makes its first ``greedy`` removals, where a layer has no more units.
    """

    points: int = 16
    draws: int = 16
    sizes: Sequence[int] = (1, 2, 3, 4, 5)
    sets: int = 600
    greedy: int = 4

    def __post_init__(self) -> None:
        for name, least in (("points", 1), ("draws", 2), ("sets", 1), ("greedy", 1)):
            check_count(f"truth.{name}", getattr(self, name), least)
        check_counts("truth.sizes", self.sizes, (1, 2, 3))


@dataclass
class LayerTruth:
    """What was measured in a layer (or group of layers).

    ``forward`` and ``reverse`` are by criterion the mean rise of the loss (samples,) over all
    removals, lowest score first and highest first; ``chance`` (draws, samples) that of random
    orders. ``sets`` are
    by size the rises (samples, sets) of all sets; ``greedy`` are the units that the greedy oracle
    removes, one after another.
    """

    layer: str
    units: int
    scores: Mapping[str, np.ndarray]
    chance: np.ndarray
    forward: dict[str, np.ndarray] = field(default_factory=dict)
    reverse: dict[str, np.ndarray] = field(default_factory=dict)
    sets: dict[int, np.ndarray] = field(default_factory=dict)
    greedy: list[int] = field(default_factory=list)
    curves: dict[str, np.ndarray] = field(default_factory=dict)
    """By criterion the mean rise after ``counts`` removals, lowest score first; ``chance`` too."""
    counts: np.ndarray = field(default_factory=lambda: np.arange(0))


def judge(
    layer: str,
    players: Players,
    scores: Mapping[str, np.ndarray],
    curves: Removals,
    oracles: Removals,
    settings: Settings,
) -> LayerTruth:
    """Remove the units of a layer as the criteria say, by ``scores`` (units,) of each.

    ``curves`` measures all orders, ``oracles`` (of fewer samples, perhaps) all sets of some sizes.
    """
    units = len(next(iter(scores.values())))
    counts = grid(units, settings.points)
    stream = np.random.default_rng(0)
    random = [stream.permutation(units) for _ in range(settings.draws)]
    ascending = [np.argsort(each, kind="stable") for each in scores.values()]
    orders = [*ascending, *(each[::-1] for each in ascending), *random]
    rises = curves.rises(players, [first_of(order, counts) for order in orders])
    there, back, drawn = (
        rises[: len(scores)], rises[len(scores) : -len(random)], rises[-len(random) :]
    )  # fmt: skip
    chance = np.stack(drawn)  # (draws, samples, counts)
    found = LayerTruth(layer, units, scores, mean_rise(chance, counts), counts=counts)
    for name, forward, reverse in zip(scores, there, back, strict=True):
        found.forward[name] = mean_rise(forward, counts)
        found.reverse[name] = mean_rise(reverse, counts)
        found.curves[name] = forward.mean(0)
    found.curves["chance"] = chance.mean((0, 1))
    for size in settings.sizes:
        if size < units and math.comb(units, size) <= settings.sets:
            (found.sets[size],) = oracles.rises(players, [sets_of(units, size)])
    if units <= settings.sets:
        found.greedy = _greedy(players, units, oracles, min(settings.greedy, units // 2))
    return found


def _greedy(players: Players, units: int, oracles: Removals, steps: int) -> list[int]:
    """Whichever unit raises the loss least when it goes, again and again."""
    gone: list[int] = []
    for _ in range(steps):
        rest = [unit for unit in range(units) if unit not in gone]
        removed = np.zeros((len(rest), units), dtype=bool)
        removed[:, gone] = True
        removed[np.arange(len(rest)), rest] = True
        (rises,) = oracles.rises(players, [removed])
        gone.append(rest[int(rises.mean(0).argmin())])
    return gone
