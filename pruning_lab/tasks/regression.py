"""Regression: numbers a sample, squared error, root mean squared error."""

from typing import Any

import numpy as np
import torch
from torch import nn

from pruning_lab.datasets import Splits
from pruning_lab.tasks.outputs import check_outputs, check_targets
from pruning_lab.tasks.task import LOSS, Measure, Samples, Task


class Regression(Task):
    """One or more numbers a sample: the squared error of the model's output (N, numbers).

    The loss of a sample is the mean of its squared errors. ``rmse`` is the root of the mean loss,
    ``mae`` the mean absolute error, both in the targets' unit; ``r2`` is 1 minus the mean loss over
    that of the targets' mean, averaged over the numbers.
    """

    targets = "numbers"
    measures = (
        Measure("rmse", higher_is_better=False, label="RMSE"),
        LOSS,
        Measure("mae", higher_is_better=False, chart="rmse", label="MAE"),
        Measure("r2", higher_is_better=True, label="R²"),
    )

    def loss(self, output: Any, target: Any, reduction: str = "mean") -> torch.Tensor:
        losses = (output - target).square().flatten(1).mean(1)
        return reduced(losses, reduction)

    def observe(self, output: Any, target: Any) -> dict[str, torch.Tensor]:
        """Return ``errors``, output minus target, and ``targets``, (N, numbers) each."""
        return {"errors": output - target, "targets": target}

    def measure(self, samples: Samples) -> dict[str, float]:
        errors, targets = samples["errors"].astype(float), samples["targets"].astype(float)
        squares = np.square(errors).mean(0)
        spread = np.square(targets - targets.mean(0)).mean(0)
        loss = float(samples["losses"].mean(dtype=float))
        return {
            "rmse": float(np.sqrt(loss)),
            "loss": loss,
            "mae": float(np.abs(errors).mean()),
            "r2": float((1 - squares / spread).mean()),
        }

    def uninformed_loss(self, splits: Splits) -> float:
        """Return the loss on ``train`` of a network that always gives the targets' mean."""
        pairs = [splits.train[index] for index in range(len(splits.train))]  # type: ignore[arg-type]
        targets = torch.stack([target for _, target in pairs]).double()
        return float((targets - targets.mean(0)).square().mean())

    def check(self, model: nn.Module, splits: Splits) -> None:
        """Raise UserError unless the model makes finite numbers out of each sample by itself, as
        many as a target has.
        """
        check_targets(self, splits)
        check_outputs(model, splits, "numbers a target")


def reduced(losses: torch.Tensor, reduction: str) -> torch.Tensor:
    """Return the mean or the sum of losses (N,), or with ``"none"`` the losses."""
    return {"mean": losses.mean, "sum": losses.sum}.get(reduction, lambda: losses)()
