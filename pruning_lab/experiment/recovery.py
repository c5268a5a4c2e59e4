"""Recalibration and fine-tuning after a cut, each measured."""

import time

import torch
from torch.optim import Optimizer
from torch.utils.data import Dataset

from pruning_lab.experiment.conditions import Conditions, Stages
from pruning_lab.experiment.network import Network
from pruning_lab.runtime import distributed
from pruning_lab.runtime.random_streams import seeded
from pruning_lab.training.fit import NullEpochStore, fit, part, snapshot
from pruning_lab.training.recalibration import recalibrate, with_statistics


class Recovery:
    """Recalibration and fine-tuning after a cut, each measured."""

    def __init__(self, network: Network, conditions: Conditions, optimizer: Optimizer) -> None:
        self._network, self._conditions, self._optimizer = network, conditions, optimizer
        train, share = conditions.splits.train, conditions.finetune.share
        self._data: Dataset = part(train, share, seeded(conditions.order, 0))

    def after_cut(
        self, number: int, steps: int, epochs: NullEpochStore
    ) -> tuple[Stages, dict[str, float]]:
        """Recover the network after the cut of a step; returns measurements and seconds."""
        order, stages = self._conditions.order, Stages()
        self._measure(stages, "cut")
        spent = self._recalibrate(stages, seeded(order, steps + number))
        label = f"Fine-tuning, step {number} of {steps}"
        spent |= self._finetune(stages, seeded(order, number), label, epochs)
        return stages or {"after": self._conditions.measure(self._network)}, spent

    def _recalibrate(self, stages: Stages, order: torch.Generator) -> dict[str, float]:
        model, samples = self._network.model, self._conditions.recalibrate
        if not (samples and with_statistics(model)):
            return {"recalibrate_seconds": 0.0}
        started = time.perf_counter()
        recalibrate(model, self._data, samples, self._conditions.task, order)
        spent = time.perf_counter() - started
        self._measure(stages, "before")
        return {"recalibrate_seconds": spent}

    def _finetune(
        self, stages: Stages, order: torch.Generator, label: str, epochs: NullEpochStore
    ) -> dict[str, float]:
        """Fine-tune the network, and undo it where it does not help and is to be undone."""
        conditions, model = self._conditions, self._network.model
        if not conditions.finetune:
            return {"finetune_seconds": 0.0}
        undo, started = snapshot(model, self._optimizer), time.perf_counter()
        fit(
            model, self._optimizer, self._data, conditions.finetune, conditions.task, order, label,
            epochs,
        )  # fmt: skip
        spent = epochs.seconds + time.perf_counter() - started
        after = conditions.measure(self._network)
        harms = conditions.undo_harm and distributed.agreed(
            lambda: not after.is_better_than(list(stages.values())[-1])
        )
        if harms:
            undo()
        else:
            stages["after"] = after
        return {"finetune_seconds": spent, "finetune_kept": not harms}

    def _measure(self, stages: Stages, stage: str) -> None:
        """Measure a stage that is not the last one, if it is wanted."""
        if self._conditions.every_stage:
            stages[stage] = self._conditions.measure(self._network)
