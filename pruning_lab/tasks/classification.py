"""Classification: one class a sample, cross-entropy, accuracy."""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from pruning_lab.datasets import Splits
from pruning_lab.errors import UserError
from pruning_lab.tasks.outputs import check_outputs, check_targets
from pruning_lab.tasks.task import LOSS, Measure, Samples, Task


class Classification(Task):
    """One class a sample: the cross-entropy of the model's output (N, classes), and its accuracy.

    ``accuracy`` is the share of correct answers, ``worst_class_accuracy`` that of the class where
    it is lowest, ``calibration_error`` the expected calibration error over 15 equal bins of
    confidence (Guo et al., ICML 2017).
    """

    targets = "class"
    measures = (
        Measure("accuracy", higher_is_better=True, unit="%"),
        LOSS,
        Measure("worst_class_accuracy", higher_is_better=True, unit="%", chart="accuracy"),
        Measure("calibration_error", higher_is_better=False, unit="%", chart="cost"),
    )

    def loss(self, output: Any, target: Any, reduction: str = "mean") -> torch.Tensor:
        return F.cross_entropy(output, target, reduction=reduction)

    def observe(self, output: Any, target: Any) -> dict[str, torch.Tensor]:
        """Return ``correct`` (N,), boolean, ``confidence`` (N,), the largest probability, and
        ``targets`` (N,), the classes.
        """
        confidence = output.softmax(1).amax(1)
        return {
            "correct": output.argmax(1) == target, "confidence": confidence, "targets": target,
        }  # fmt: skip

    def measure(self, samples: Samples) -> dict[str, float]:
        return {
            "accuracy": float(samples["correct"].mean()),
            "loss": float(samples["losses"].mean(dtype=float)),
            "worst_class_accuracy": worst_class(samples["correct"], samples["targets"]),
            "calibration_error": calibration_error(samples["correct"], samples["confidence"]),
        }

    def uninformed_loss(self, splits: Splits) -> float:
        """Return ln(classes): every class has the same probability."""
        return math.log(splits.num_classes)

    def check(self, model: nn.Module, splits: Splits) -> None:
        """Raise UserError unless the model makes one finite number a class out of each sample by
        itself, which is no probability.
        """
        check_targets(self, splits)
        _check_logits(check_outputs(model, splits, "classes"))


def worst_class(correct: np.ndarray, targets: np.ndarray) -> float:
    """Return the share of correct answers in the class where it is lowest."""
    counts = np.bincount(targets)
    right = np.bincount(targets, correct, len(counts))
    return float((right[counts > 0] / counts[counts > 0]).min())


def calibration_error(correct: np.ndarray, confidence: np.ndarray) -> float:
    """Return the expected calibration error over 15 equal bins of confidence."""
    confidence = np.nan_to_num(confidence)
    bins = np.minimum((15 * confidence).astype(int), 14)
    gaps = np.bincount(bins, confidence - correct, 15)
    return float(np.abs(gaps).sum() / len(bins))


def _check_logits(output: torch.Tensor) -> None:
    """UserError for probabilities: the cross-entropy takes the softmax itself."""
    if output.is_meta or output.shape[1] < 2 or (output < 0).any():
        return
    if torch.allclose(output.sum(1), torch.ones_like(output[:, 0]), atol=1e-3):
        raise UserError(
            "The model gives probabilities: the numbers of each image are not below 0 and add up "
            "to 1. The loss is the cross-entropy, which takes the softmax itself: return what goes "
            "into the softmax."
        )
