"""Multi-label classification: any of several labels a sample, binary cross-entropy, F1."""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from pruning_lab.datasets import Splits
from pruning_lab.tasks.outputs import check_outputs, check_targets
from pruning_lab.tasks.regression import reduced
from pruning_lab.tasks.task import LOSS, Measure, Samples, Task


class Multilabel(Task):
    """Any of several labels a sample: the binary cross-entropy of the output's logits (N, labels).

    The loss of a sample is the mean over its labels; a label is predicted where its logit is above
    0. ``macro_f1`` is the mean over the labels of 2 TP / (2 TP + FP + FN), 1 for a label that is
    neither there nor predicted; ``label_accuracy`` the share of labels that are right,
    ``subset_accuracy`` the share of samples of which all are.
    """

    targets = "labels"
    measures = (
        Measure("macro_f1", higher_is_better=True, unit="%", label="macro F1"),
        LOSS,
        Measure("label_accuracy", higher_is_better=True, unit="%", chart="accuracy"),
        Measure("subset_accuracy", higher_is_better=True, unit="%", chart="accuracy"),
    )

    def loss(self, output: Any, target: Any, reduction: str = "mean") -> torch.Tensor:
        losses = F.binary_cross_entropy_with_logits(output, target.to(output), reduction="none")
        return reduced(losses.mean(1), reduction)

    def observe(self, output: Any, target: Any) -> dict[str, torch.Tensor]:
        """Return ``correct`` (N,): all labels are right; ``predicted`` and ``targets`` (N, labels);
        all boolean.
        """
        predicted, wanted = output > 0, target > 0
        return {
            "correct": (predicted == wanted).all(1), "predicted": predicted, "targets": wanted,
        }  # fmt: skip

    def measure(self, samples: Samples) -> dict[str, float]:
        predicted, targets = samples["predicted"], samples["targets"]
        hits, wrong = (predicted & targets).sum(0), (predicted != targets).sum(0)
        known = 2 * hits + wrong  # 2 TP + FP + FN
        scores = np.divide(2 * hits, known, out=np.ones(len(known)), where=known > 0)
        return {
            "macro_f1": float(scores.mean()),
            "loss": float(samples["losses"].mean(dtype=float)),
            "label_accuracy": float((predicted == targets).mean()),
            "subset_accuracy": float(samples["correct"].mean()),
        }

    def uninformed_loss(self, splits: Splits) -> float:
        """Return ln 2: every label is as likely as not."""
        return math.log(2)

    def check(self, model: nn.Module, splits: Splits) -> None:
        """Raise UserError unless the model makes one finite number a label out of each sample by
        itself.
        """
        check_targets(self, splits)
        check_outputs(model, splits, "labels")
