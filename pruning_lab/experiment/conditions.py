"""The common conditions of a comparison, and measuring a network under them."""

from dataclasses import dataclass, replace

import numpy as np

from pruning_lab.datasets import Splits
from pruning_lab.errors import UserError
from pruning_lab.experiment.network import Network
from pruning_lab.pruning.schedules import Schedule, Step
from pruning_lab.records.step import STALE, UNTUNED, Measurement
from pruning_lab.tasks.task import LOSS, Task
from pruning_lab.training.evaluation import Evaluation, evaluate
from pruning_lab.training.recalibration import with_statistics
from pruning_lab.training.recipe import Training


@dataclass(frozen=True)
class Conditions:
    """The conditions under which every criterion of a comparison is tested.

    Args:
        task: what the network is for.
        splits: the data set.
        schedule: what is removed at each step.
        finetune: the training after each cut.
        order: seeds the order of the training data.
        recalibrate: number of training samples from which BatchNorm's statistics are recomputed
            after a cut; 0: they are kept.
        undo_harm: undo fine-tuning that does not improve the primary measure on ``val``; between
            equal values the validation loss decides.
        every_stage: measure after the cut and before fine-tuning, too. Without it a step is
            measured at its end only, and nothing can be undone.

    Raises:
        UserError: for ``undo_harm`` without ``every_stage``.
    """

    task: Task
    splits: Splits
    schedule: Schedule
    finetune: Training
    order: int
    recalibrate: int = 1000
    undo_harm: bool = True
    every_stage: bool = True

    def __post_init__(self) -> None:
        if self.undo_harm and not self.every_stage:
            raise UserError(
                "undo_harm=True compares the network before and after fine-tuning; give "
                "every_stage=True with it, or undo_harm=False."
            )

    def steps(self, network: Network) -> list[Step]:
        """Return the schedule's steps for the layers of a network that are scored."""
        groups = network.groups().values()
        return self.schedule.steps_for(
            [[layer for layer in group.unit_groups if layer in network.layers] for group in groups]
        )

    def controls(self, network: Network, untuned: bool, stale: bool) -> dict[str, "Conditions"]:
        """Return the conditions of the requested control tracks, where they differ from these."""
        tracks = {}
        if untuned and self.finetune:  # its share is what recalibration sees
            none = Training(epochs=0, share=self.finetune.share)
            tracks[UNTUNED] = replace(self, finetune=none)
        if stale and self.recalibrate and with_statistics(network.model):
            tracks[STALE] = replace(self, finetune=Training(epochs=0), recalibrate=0)
        return tracks

    def measure(self, network: Network) -> "Measured":
        """Measure a network in its present state on the test and the validation split."""
        test, val = (
            evaluate(network.model, split, self.task)
            for split in (self.splits.test, self.splits.val)
        )
        return Measured(self.task, test, val)


@dataclass(frozen=True)
class Measured:
    """A network on the test and the validation split."""

    task: Task
    test: Evaluation
    val: Evaluation

    def measurements(self) -> list[Measurement]:
        """All measures on test; on val the primary one and the loss."""
        first = list(dict.fromkeys((self.task.primary, LOSS)))
        others = [measure for measure in self.task.measures if measure not in first]
        return [
            Measurement(split, measure.name, measure.chart, evaluation.values[measure.name])
            for split, evaluation, measures in (
                ("test", self.test, first), ("val", self.val, first), ("test", self.test, others)
            )
            for measure in measures
        ]  # fmt: skip

    def is_better_than(self, other: "Measured") -> bool:
        """Compare the primary measure on val; the losses where it is equal."""
        primary = self.task.primary
        own, others = (each.val.values for each in (self, other))
        pair = own[primary.name], others[primary.name]
        if not np.array_equal(*pair, equal_nan=True):
            return primary.is_better(*pair)
        losses = (np.nan_to_num(each[LOSS.name], nan=np.inf) for each in (own, others))
        return bool(np.less(*losses))


Stages = dict[str, Measured]
"""Measurements of a step by stage; stages that changed nothing are left out."""
