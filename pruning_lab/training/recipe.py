"""Settings of training by stochastic gradient descent."""

from dataclasses import dataclass

import torch
from torch import nn

from pruning_lab.errors import UserError, check_choice, check_count, check_number, check_switch

LR_SCHEDULES = ("constant", "cosine", "one_cycle")


@dataclass(frozen=True, kw_only=True)
class Training:
    """Settings of stochastic gradient descent on the task's loss function; UserError for others.

    Args:
        epochs: passes over the training data; 0: no training. Give either this or ``steps``.
        steps: number of batches instead.
        lr: learning rate, above 0; the highest one with a schedule.
        momentum: of v <- momentum v + gradient; from 0 to below 1. ``nesterov``: Nesterov's form.
        weight_decay: times the weights, added to the gradient.
        batch_size: samples in each step, 2 or more.
        lr_schedule: ``"constant"``; ``"cosine"``: from ``lr`` to 0; ``"one_cycle"``: from lr / 25
            to ``lr`` in the first 30 % of the steps, then to 0.
        share: of the training data that is used (the low-data regime), above 0 and at most 1.
    """

    epochs: int | None = None
    lr: float = 0.01
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    batch_size: int = 64
    lr_schedule: str = "constant"
    share: float = 1.0
    steps: int | None = None

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            given = "none is" if self.epochs is None else "both are"
            raise UserError(
                f"epochs={self.epochs} and steps={self.steps}: {given} given, one perhaps by "
                "default. The length of a training is given once: set epochs or steps to a number "
                "and the other one to null."
            )
        unit = "epochs" if self.steps is None else "steps"
        check_count(unit, getattr(self, unit), 0)
        check_number("lr", self.lr, lambda lr: lr > 0, "above 0")
        check_number("momentum", self.momentum, lambda m: 0 <= m < 1, "from 0 to below 1")
        check_number("weight_decay", self.weight_decay, lambda decay: decay >= 0, "from 0 on")
        check_count("batch_size", self.batch_size, 2)  # BatchNorm needs two samples
        check_choice("lr_schedule", self.lr_schedule, LR_SCHEDULES)
        check_number("share", self.share, lambda share: 0 < share <= 1, "above 0, at most 1")
        check_switch("nesterov", self.nesterov)
        if self.nesterov and self.momentum == 0:
            raise UserError("nesterov=True is not possible with momentum=0; set a momentum.")

    def __bool__(self) -> bool:
        """Return True if anything is trained."""
        return bool(self.epochs or self.steps)

    @property
    def length(self) -> str:
        """The length as text: ``2 epochs``."""
        count, unit = (self.epochs, "epoch") if self.epochs is not None else (self.steps, "step")
        return f"{count} {unit}{'' if count == 1 else 's'}"

    def batches(self, samples: int) -> int:
        """Return the number of optimizer steps with this many training samples.

        A single sample in the last batch of an epoch is left out: BatchNorm cannot normalise it.
        """
        return (self.epochs or 0) * self.per_epoch(samples) + (self.steps or 0)

    def samples(self, of: int) -> int:
        """Return the number of samples processed; a sample counts at every pass."""
        return (self.epochs or 0) * of + (self.steps or 0) * min(self.batch_size, of)

    def per_epoch(self, samples: int) -> int:
        """Return the number of batches in an epoch of this many samples."""
        return samples // self.batch_size + (samples % self.batch_size > 1)

    def optimizer(self, model: nn.Module) -> torch.optim.SGD:
        """Return SGD over the model's parameters."""
        return torch.optim.SGD(
            model.parameters(),
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
        )
