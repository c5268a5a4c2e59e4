"""How far to go at each step of an experiment."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from pruning_lab.errors import UserError

QUANTITIES = ("flops", "parameters", "units")
SCOPES = ("global", "per_layer")
NORMALISATIONS = ("none", "l2", "max")


@dataclass(frozen=True)
class Step:
    """Score ``layers``, then remove units of theirs.

    ``ratio`` is the share of the *original* model that is gone after the step; None removes
    whatever scores below 0.
    """

    layers: tuple[str, ...]
    ratio: float | None


@dataclass(frozen=True, kw_only=True)
class Schedule(ABC):
    """The steps of an experiment; every layer keeps at least ``min_units`` units."""

    min_units: int = 1

    def __post_init__(self) -> None:
        _check_count("min_units", self.min_units)

    @abstractmethod
    def steps_for(self, layers: list[str]) -> list[Step]:
        """The steps for a model with these prunable layers, in order of execution."""


@dataclass(frozen=True, kw_only=True)
class ToTarget(Schedule):
    """Remove the share ``target`` of the original's flops, parameters or units (``of``).

    ``scope`` takes the same share of each layer, or ranks the units of all layers together;
    ``normalise`` divides the scores of a layer by their l2 norm or largest magnitude before
    layers are compared.
    """

    target: float
    of: str = "flops"
    scope: str = "per_layer"
    normalise: str = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_choice("of", self.of, QUANTITIES)
        _check_choice("scope", self.scope, SCOPES)
        _check_choice("normalise", self.normalise, NORMALISATIONS)
        if not 0 < self.target < 1:
            raise UserError(
                f"schedule.target={self.target} is not possible: it is the share of the original "
                f"{self.of} to remove, between 0 and 1 (both excluded), 0.8 for example."
            )

    @abstractmethod
    def ratios(self) -> list[float]:
        """The share that is gone after each step."""

    def steps_for(self, layers: list[str]) -> list[Step]:
        return [Step(tuple(layers), ratio) for ratio in self.ratios()]


@dataclass(frozen=True, kw_only=True)
class OneShot(ToTarget):
    """Everything in one step."""

    def ratios(self) -> list[float]:
        return [self.target]


@dataclass(frozen=True, kw_only=True)
class Progressive(ToTarget):
    """The target in several ``steps``."""

    steps: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_count("steps", self.steps)


@dataclass(frozen=True, kw_only=True)
class Linear(Progressive):
    """The same share of the original at every step: target x k / steps."""

    def ratios(self) -> list[float]:
        return [self.target * k / self.steps for k in range(1, self.steps + 1)]


@dataclass(frozen=True, kw_only=True)
class Geometric(Progressive):
    """The same share of what is left at every step: 1 - (1 - target)^(k / steps)."""

    def ratios(self) -> list[float]:
        return [1 - (1 - self.target) ** (k / self.steps) for k in range(1, self.steps + 1)]


@dataclass(frozen=True, kw_only=True)
class NegativeScores(Schedule):
    """Remove every unit that scores below 0, one layer a step, the last layer first.

    As Ancona et al. (arXiv 2006.01795) prune untrained networks.
    """

    def steps_for(self, layers: list[str]) -> list[Step]:
        return [Step((layer,), None) for layer in reversed(layers)]


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(
            f"schedule.{name}={value!r} is not known; choose one of {', '.join(allowed)}."
        )


def _check_count(name: str, value: int) -> None:
    if not isinstance(value, int) or value < 1:
        raise UserError(f"schedule.{name}={value} is not possible; it is a whole number from 1 on.")
