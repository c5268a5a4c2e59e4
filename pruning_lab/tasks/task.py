"""The base of all tasks: everything that depends on what a network is for."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from pruning_lab.datasets import Splits
from pruning_lab.runtime.inputs import Inputs, call, inputs_and_target

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

    A batch is what the data loader gives: (input, target), several inputs with the target last, or
    a dictionary of the model's named arguments with the target as ``target_key``.
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

    def inputs(self, batch: Any) -> Inputs:
        """Return the model's arguments: a tensor, a tuple of several, or a dictionary of names."""
        return inputs_and_target(batch, self.target_key)[0]

    def target(self, batch: Any) -> Any:
        """Return what the model should give."""
        return inputs_and_target(batch, self.target_key)[1]

    def output(self, given: Any) -> Any:
        """Return what the loss reads of what a model gives; all of it by default."""
        return given

    def run(self, model: nn.Module, batch: Any) -> Any:
        """Return the model's output for a batch."""
        return self.output(call(model, self.inputs(batch)))

    def criterion(self, given: Any, target: Any, reduction: str = "mean") -> torch.Tensor:
        """Return the loss of what a model gives: the loss function that the criteria take."""
        return self.loss(self.output(given), target, reduction)


class Pairs:
    """The batches of a loader as pairs (inputs, target), which criteria take, split by a task."""

    def __init__(self, task: Task, batches: DataLoader) -> None:
        self._task, self._batches = task, batches
        self.batch_sampler, self.sampler = batches.batch_sampler, batches.sampler
        self.generator = batches.generator

    def __iter__(self) -> Iterator[tuple[Inputs, Any]]:
        for batch in self._batches:
            yield self._task.inputs(batch), self._task.target(batch)
