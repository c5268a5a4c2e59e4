"""Schedules: the steps of an experiment, and how much each of them removes."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from pruning_lab.errors import check_choice, check_count, check_number

TOGETHER = "together"
"""Units that are removed together are scored together, as one unit group."""

AGGREGATES: dict[str, Callable[[np.ndarray], float]] = {
    "mean": np.mean,
    "sum": np.sum,
    "max": np.max,
    "first": lambda scores: scores[0],
}
"""Instead: units are scored one by one, and the scores of a unit group, in order of execution,
are aggregated."""


@dataclass(frozen=True)
class Step:
    """Score ``layers``, then remove some of their units, with the units coupled to them.

    ``ratio`` is the share of the *original* model that is removed after the step; None if the
    schedule counts units instead.
    """

    layers: tuple[str, ...]
    ratio: float | None


@dataclass(frozen=True, kw_only=True)
class Schedule(ABC):
    """The steps of an experiment.

    Every layer keeps at least ``min_units`` units, and a number of them that ``multiple_of``
    divides (8 suits tensor cores), unless it loses none. ``coupled``: units of several layers that
    can only be removed together are scored ``together``, as one unit group, or ranked by the mean,
    sum, max, or the first of their own scores. A criterion whose scores say nothing about a unit
    (random) then uses the first, which is one sample.
    """

    min_units: int = 1
    multiple_of: int = 1
    coupled: str = TOGETHER

    def __post_init__(self) -> None:
        check_count("schedule.min_units", self.min_units)
        check_count("schedule.multiple_of", self.multiple_of)
        check_choice("schedule.coupled", self.coupled, (TOGETHER, *AGGREGATES))

    @abstractmethod
    def steps_for(self, groups: Sequence[Sequence[str]]) -> list[Step]:
        """Return the steps for a model with these groups of layers, in order of execution.

        Steps name layers, not groups: pruning may split a group, but layers keep their names.
        """


@dataclass(frozen=True, kw_only=True)
class ToTarget(Schedule):
    """Remove the share ``target`` of the original's flops, parameters or units (``of``).

    With ``scope`` ``per_layer`` each layer (or group of layers) loses the same share; ``global``
    ranks the units of all together. ``normalise`` divides the scores of a group by their l2 norm or
    largest magnitude before groups are compared. Then ``flops_penalty`` times the million FLOPs
    that removing a unit saves, in its own layer and in those that read it, is subtracted from its
    score (after Molchanov et al., arXiv 1611.06440): with scope ``global``, of two units of the
    same score the one with more FLOPs is removed first.
    """

    target: float
    of: str = "flops"
    scope: str = "per_layer"
    normalise: str = "none"
    flops_penalty: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("schedule.of", self.of, ("flops", "parameters", "units"))
        check_choice("schedule.scope", self.scope, ("global", "per_layer"))
        check_choice("schedule.normalise", self.normalise, ("none", "l2", "max"))
        check_number(
            "schedule.flops_penalty", self.flops_penalty, lambda penalty: penalty >= 0,
            "0 or more: subtracted from a unit's score for each million FLOPs",
        )  # fmt: skip
        share = f"between 0 and 1 (both excluded): the share of the original {self.of} to remove"
        check_number("schedule.target", self.target, lambda target: 0 < target < 1, share)

    @abstractmethod
    def ratios(self) -> list[float]:
        """Return the share of the original that is removed after each step."""

    def steps_for(self, groups: Sequence[Sequence[str]]) -> list[Step]:
        layers = tuple(chain.from_iterable(groups))
        return [Step(layers, ratio) for ratio in self.ratios()]


@dataclass(frozen=True, kw_only=True)
class OneShot(ToTarget):
    """Reach the target in one step."""

    def ratios(self) -> list[float]:
        return [self.target]


@dataclass(frozen=True, kw_only=True)
class Progressive(ToTarget):
    """Reach the target in several ``steps``."""

    steps: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        # a step is recorded under its permille of FLOPs
        check_count("schedule.steps", self.steps, most=1000)


@dataclass(frozen=True, kw_only=True)
class Linear(Progressive):
    """Remove the same share of the original at every step: target x k / steps."""

    def ratios(self) -> list[float]:
        return [self.target * k / self.steps for k in range(1, self.steps + 1)]


@dataclass(frozen=True, kw_only=True)
class Geometric(Progressive):
    """Remove the same share of the remainder at every step: 1 - (1 - target)^(k / steps)."""

    def ratios(self) -> list[float]:
        return [1 - (1 - self.target) ** (k / self.steps) for k in range(1, self.steps + 1)]


@dataclass(frozen=True, kw_only=True)
class GroupByGroup(Schedule):
    """Prune one group of layers per step, the last group first; each is scored at its step."""

    def steps_for(self, groups: Sequence[Sequence[str]]) -> list[Step]:
        return [Step(tuple(layers), None) for layers in reversed(groups)]

    @abstractmethod
    def count(self, scores: np.ndarray, width: int) -> int:
        """Return the number of units to remove from a group of ``width``.

        ``scores`` are those of the units that may be removed.
        """


@dataclass(frozen=True, kw_only=True)
class NegativeScores(GroupByGroup):
    """Remove every unit that scores below 0.

    As Ancona et al. (arXiv 2006.01795) prune untrained networks.
    """

    def count(self, scores: np.ndarray, width: int) -> int:
        return int((scores < 0).sum())


@dataclass(frozen=True, kw_only=True)
class LayerByLayer(GroupByGroup):
    """Remove the share ``share`` of each group's units, those with the lowest scores.

    Their number is rounded, halves to even: 0 if ``share`` of a group is half a unit or less. With
    groups of one layer this prunes layer after layer. The order, and new scores for each layer, are
    those of Ancona et al.'s published code.
    """

    share: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(
            "schedule.share", self.share, lambda share: 0 < share < 1,
            "between 0 and 1 (both excluded): the share of each layer's units to remove",
        )  # fmt: skip

    def count(self, scores: np.ndarray, width: int) -> int:
        return round(self.share * width)
