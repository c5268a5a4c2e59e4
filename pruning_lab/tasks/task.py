"""The base of all tasks: everything that depends on what a network is for."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from pruning_lab.datasets import Splits

Samples = Mapping[str, np.ndarray]
"""Results by sample, (N, ...) each: ``losses`` (N,) and what ``Task.observe`` gives."""


@dataclass(frozen=True)
class Measure:
    """A number that says how good a network is.

    Args:
        name: as it stands in columns, ``test_<name>_after`` for example.
        higher_is_better: False for an error or a perplexity.
        unit: ``"%"`` for a share, which is recorded from 0 to 1 and shown times 100; else the
            text that follows the number.
        chart: in which section of MLflow's charts it is drawn; its name by default.
        label: the name as people read it; by default with blanks for underscores.
    """

    name: str
    higher_is_better: bool
    unit: str = ""
    chart: str = ""
    label: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "chart", self.chart or self.name)
        object.__setattr__(self, "label", self.label or self.name.replace("_", " "))

    @property
    def scale(self) -> float:
        """By what a recorded value is multiplied where it is shown."""
        return 100.0 if self.unit == "%" else 1.0

    def text(self, value: float) -> str:
        """A value as it is shown: ``97.22 %``."""
        return f"{self.number(value)} {self.unit}".rstrip()

    @property
    def points(self) -> str:
        """The unit of a difference: ``points`` of per cent, or the measure's own."""
        return "points" if self.unit == "%" else self.unit

    @property
    def axis(self) -> str:
        """The name with the unit, for an axis or a column: ``accuracy (%)``."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def number(self, value: float, digits: int = 2) -> str:
        """A value or a difference without its unit: per cent with so many ``digits``."""
        if self.unit == "%":
            return f"{100 * value:.{digits}f}"
        return f"{value:.{digits + 2}{'g' if abs(value) >= 1 else 'f'}}"

    def tenths(self, value: float) -> str:
        """The same with one digit of a per cent."""
        return self.number(value, 1)

    def recorded(self) -> dict[str, str]:
        """The measure as tags of a run, for ``measure_from``."""
        better = HIGHER if self.higher_is_better else LOWER
        return dict(zip(MEASURE, (self.name, self.label, self.unit, better), strict=True))

    def is_better(self, value: float, other: float) -> bool:
        """Return True if ``value`` is better than ``other``; NaN is worse than any number."""
        if math.isnan(value) or math.isnan(other):
            return math.isnan(other) and not math.isnan(value)
        return value > other if self.higher_is_better else value < other


HIGHER, LOWER = "higher", "lower"

MEASURE = {
    "measure": "accuracy", "measure_label": "accuracy", "measure_unit": "%",
    "measure_better": HIGHER,
}  # fmt: skip
"""Tags that record a run's primary measure, with the values that hold for runs without them."""


def measure_from(recorded: Mapping[str, Any]) -> Measure:
    """The primary measure out of what ``Measure.recorded`` gave; of none the old versions'."""
    name, label, unit, better = (str(recorded.get(key, old)) for key, old in MEASURE.items())
    return Measure(name, better == HIGHER, unit, label=label)


LOSS = Measure("loss", higher_is_better=False)
"""The mean loss, which every task has."""


class Task(ABC):
    """The loss of a batch, the measures, and how a batch is passed to a model.

    A batch is what the data loader gives: by default a pair (input, target), or a dictionary whose
    entry ``target_key`` is the target and whose other entries are the model's named arguments.
    Subclass it, and name your class as ``task._target_``, for a task of your own.
    """

    targets: ClassVar[str]
    """The kind of the data set's targets, one of ``datasets.TARGETS``."""

    measures: ClassVar[tuple[Measure, ...]]
    """The measures that ``measure`` returns. The first is the primary one: curves, statistics and a
    job's result use it. On the validation split only this one and the loss are recorded."""

    target_key: ClassVar[str] = "labels"
    """Where the target stands in a batch that is a dictionary."""

    @property
    def primary(self) -> Measure:
        """The measure that networks are compared by."""
        return self.measures[0]

    @abstractmethod
    def loss(self, output: Any, target: Any, reduction: str = "mean") -> torch.Tensor:
        """Return the loss, as torch's own loss functions do.

        Args:
            output: what the model gives for N samples.
            target: of the same samples.
            reduction: ``"mean"`` or ``"sum"`` over the samples, or ``"none"``: (N, ...).
        """

    @abstractmethod
    def observe(self, output: Any, target: Any) -> dict[str, torch.Tensor]:
        """Return what ``measure`` needs of each sample, (N, ...) each, besides its loss."""

    @abstractmethod
    def measure(self, samples: Samples) -> dict[str, float]:
        """Return the value of every measure, by name, over all samples of a split."""

    @abstractmethod
    def check(self, model: nn.Module, splits: Splits) -> None:
        """Raise UserError for a model or a data set that the task is not for."""

    @abstractmethod
    def uninformed_loss(self, splits: Splits) -> float:
        """Return the loss of a network that knows nothing of its input."""

    # -- batches ------------------------------------------------------------------------------

    def inputs(self, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the positional and the named arguments of the model."""
        if isinstance(batch, Mapping):
            return (), {key: value for key, value in batch.items() if key != self.target_key}
        *given, _ = batch
        return tuple(given), {}

    def target(self, batch: Any) -> Any:
        """Return what the model should give."""
        return batch[self.target_key] if isinstance(batch, Mapping) else batch[-1]

    def output(self, found: Any) -> Any:
        """Return what the loss takes of what a model gives; all of it by default."""
        return found

    def run(self, model: nn.Module, batch: Any) -> Any:
        """Return the model's output for a batch."""
        args, kwargs = self.inputs(batch)
        return self.output(model(*args, **kwargs))

    def length(self, batch: Any) -> int:
        """Return the number of samples of a batch."""
        return len(next(leaf for leaf in tree_leaves(batch) if isinstance(leaf, torch.Tensor)))

    def select(self, batch: Any, rows: slice | torch.Tensor) -> Any:
        """Return some samples of a batch, as a batch."""
        return tree_map(lambda leaf: leaf[rows] if isinstance(leaf, torch.Tensor) else leaf, batch)

    def to(self, batch: Any, device: torch.device) -> Any:
        """Return a batch on a device."""
        return tree_map(
            lambda leaf: leaf.to(device) if isinstance(leaf, torch.Tensor) else leaf, batch
        )
