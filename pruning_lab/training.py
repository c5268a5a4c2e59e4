"""Fitting a classifier and measuring it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR
from torch.utils.data import Dataset, Subset
from tqdm import tqdm

from pruning_lab import ranks
from pruning_lab.checkpoint import all_tensors, set_tensors
from pruning_lab.data_parallel import add_up_gradients, loss_share
from pruning_lab.datasets import loader
from pruning_lab.errors import UserError, check_choice, check_count, check_number, check_switch
from pruning_lab.graph.kinds import BatchNorm
from pruning_lab.modes import evaluating

LR_SCHEDULES = ("constant", "cosine", "one_cycle")


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a model is fitted: stochastic gradient descent on the cross-entropy.

    It lasts for ``epochs`` passes over the training data or for ``steps`` batches, of which one is
    given; 0 means no training. ``share`` is the share of the training data that is used (the
    low-data regime). With ``lr_schedule="cosine"`` the learning rate falls from ``lr`` to 0, with
    ``"one_cycle"`` it rises from lr / 25 to ``lr`` in the first 30 % and falls to 0 then.
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
            both = "none is" if self.epochs is None else "both are"
            raise UserError(
                f"epochs={self.epochs} and steps={self.steps}: {both} given, one perhaps by "
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
        """Whether anything is trained."""
        return bool(self.epochs or self.steps)

    @property
    def length(self) -> str:
        """``2 epochs``, for people."""
        count, unit = (self.epochs, "epoch") if self.epochs is not None else (self.steps, "step")
        return f"{count} {unit}{'' if count == 1 else 's'}"

    def batches(self, samples: int) -> int:
        """Steps of the optimizer with so many training samples.

        A lone sample in the last batch of an epoch is left out: BatchNorm cannot normalise it.
        """
        return (self.epochs or 0) * self.per_epoch(samples) + (self.steps or 0)

    def samples(self, of: int) -> int:
        """How many samples pass, the same one again counted again."""
        return (self.epochs or 0) * of + (self.steps or 0) * min(self.batch_size, of)

    def per_epoch(self, samples: int) -> int:
        """Batches in an epoch of so many samples."""
        return samples // self.batch_size + (samples % self.batch_size > 1)

    def optimizer(self, model: nn.Module) -> torch.optim.SGD:
        """SGD over the model's parameters."""
        return torch.optim.SGD(
            model.parameters(),
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
        )


@dataclass(frozen=True)
class Evaluation:
    """What a classifier makes of each sample of a data set, in its order.

    ``correct`` (N,) is boolean, ``losses`` (N,) the cross-entropy, ``confidence`` (N,) the largest
    probability, ``targets`` (N,) the classes.
    """

    correct: np.ndarray
    losses: np.ndarray
    confidence: np.ndarray
    targets: np.ndarray

    @property
    def accuracy(self) -> float:
        """Share of correct answers."""
        return float(self.correct.mean())

    @property
    def loss(self) -> float:
        """Mean cross-entropy."""
        return float(self.losses.mean(dtype=float))

    @property
    def worst_class(self) -> float:
        """Share of correct answers in the class where it is lowest."""
        counts = np.bincount(self.targets)
        right = np.bincount(self.targets, self.correct, len(counts))
        return float((right[counts > 0] / counts[counts > 0]).min())

    @property
    def calibration_error(self) -> float:
        """Expected calibration error over 15 equal bins of confidence (Guo et al., ICML 2017)."""
        confidence = np.nan_to_num(self.confidence)
        bins = np.minimum((15 * confidence).astype(int), 14)
        gaps = np.bincount(bins, confidence - self.correct, 15)
        return float(np.abs(gaps).sum() / len(bins))


class Epochs:
    """Where a training that was cut off goes on from; keeps nothing, for others to do."""

    seconds: float = 0.0
    """What was spent before it was cut off."""

    def restore(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, order: torch.Generator
    ) -> int:
        """How many epochs are done; model, optimizer and random streams are as after them."""
        return 0

    def keep(
        self, done: int, model: nn.Module, optimizer: torch.optim.Optimizer, order: torch.Generator
    ) -> None:
        """So many epochs are done."""


def part(dataset: Dataset, share: float, generator: torch.Generator) -> Dataset:
    """A random ``share`` of a data set, at least two samples of it."""
    if share == 1:
        return dataset
    count = len(dataset)  # type: ignore[arg-type]
    chosen = torch.randperm(count, generator=generator)[: max(2, round(share * count))]
    return Subset(dataset, chosen.tolist())


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    dataset: Dataset,
    training: Training,
    generator: torch.Generator,
    label: str,
    kept: Epochs | None = None,
) -> None:
    """Train in place as ``training`` says; ``generator`` draws the order of the samples.

    With ``kept`` it goes on behind the epochs that are done already, bit for bit. Several ranks
    share every batch. Raises UserError as soon as the loss is not finite, and for a single sample.
    """
    batches = loader(dataset, training.batch_size, generator)
    samples = len(dataset)  # type: ignore[arg-type]
    steps, per_epoch = training.batches(samples), training.per_epoch(samples)
    if training and not per_epoch:
        raise UserError(
            f"{label} is not possible: there are too few training samples, {samples}. A batch has "
            "two or more, since BatchNorm cannot normalise a single one."
        )
    model.train()
    kept = kept or Epochs()
    done = kept.restore(model, optimizer, generator)
    at = done * per_epoch
    lr_schedule = _lr_schedule(optimizer, training, steps, at)
    with tqdm(
        total=steps, initial=at, desc=label, unit="batch", disable=ranks.silent(),
        leave=False,
    ) as bar:  # fmt: skip
        for epoch in range(done, -(-steps // max(1, per_epoch))):
            ranks.draw_apart(generator)
            for x, target in batches:
                if at == steps:
                    break
                if len(x) == 1:
                    continue
                at += 1
                bar.update()
                optimizer.zero_grad()
                loss = loss_share(model, x, target)
                value = _checked(loss, label, epoch, training.lr)
                loss.backward()
                add_up_gradients(model)
                optimizer.step()
                if lr_schedule is not None:
                    lr_schedule.step()
                bar.set_postfix(loss=f"{value:.3f}", refresh=False)
            ranks.lead(model.buffers())  # most are alike; a user's own may not be
            if at < steps:
                kept.keep(epoch + 1, model, optimizer, generator)
    optimizer.zero_grad()  # a cut would slice the gradients, and nobody needs them
    model.eval()


def _checked(loss: torch.Tensor, label: str, epoch: int, lr: float) -> float:
    """The loss of all ranks; UserError where it is not finite, or nothing can be learnt from it."""
    if not math.isfinite(value := ranks.total(loss.item())):
        raise UserError(
            f"The loss became {value} in epoch {epoch + 1} of {label}: training diverged. Lower "
            f"the learning rate (it is {lr})."
        )
    if not loss.requires_grad:
        raise UserError(
            f"{label} is not possible: the model's output depends on no parameter that can be "
            "trained. Are they frozen (requires_grad), or the output detached?"
        )
    return value


@torch.no_grad()
def evaluate(model: nn.Module, dataset: Dataset, batch_size: int = 256) -> Evaluation:
    """Measure a model on a data set in eval mode; every module's own mode comes back."""
    device = next(model.parameters()).device
    found: list[tuple[torch.Tensor, ...]] = []
    with evaluating(model):
        for x, target in loader(dataset, batch_size):
            output, target = model(x.to(device)), target.to(device)
            if output.dtype in (torch.float16, torch.bfloat16):
                output = output.float()
            losses = F.cross_entropy(output, target, reduction="none")
            confidence = output.softmax(1).amax(1)
            found.append((output.argmax(1) == target, losses, confidence, target))
    return Evaluation(*(torch.cat(each).cpu().numpy() for each in zip(*found, strict=True)))


def with_statistics(model: nn.Module) -> list[Any]:
    """Return the BatchNorm layers that have running statistics."""
    return [m for m in model.modules() if isinstance(m, BatchNorm) and m.running_mean is not None]


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """Return a function that puts back what training changes: tensors, and the optimizer's state.

    Attributes that are no tensors stay as they are by then.
    """
    tensors = {name: tensor.detach().clone() for name, tensor in all_tensors(model).items()}
    state = {
        parameter: {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in own.items()}
        for parameter, own in optimizer.state.items()
    }

    def restore() -> None:
        set_tensors(model, tensors)
        optimizer.state.clear()
        optimizer.state.update(state)

    return restore


@torch.no_grad()
def recalibrate(
    model: nn.Module,
    dataset: Dataset,
    samples: int,
    generator: torch.Generator,
    batch_size: int = 256,
) -> None:
    """BatchNorm's running statistics anew: their mean over batches of ``samples`` random samples.

    Batches are of equal size, up to one sample, and of at most ``batch_size``. Nothing else
    changes: Dropout stays off, and no weight moves. Layers without running statistics stay as they
    are, and so do all if there are fewer than two samples.
    """
    norms = with_statistics(model)
    model.eval()
    # in a random order: batches of a sorted data set would each see some classes alone
    order = torch.randperm(len(dataset), generator=generator)  # type: ignore[arg-type]
    chosen = order[: max(2, samples)].numpy()
    if len(chosen) < 2:
        return
    momenta, device = [norm.momentum for norm in norms], next(model.parameters()).device
    batches = np.array_split(chosen, -(-len(chosen) // batch_size))
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean over batches
            norm.train()
        for batch in batches:
            x, _ = next(iter(loader(Subset(dataset, batch.tolist()), len(batch))))
            model(x.to(device))
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        model.eval()


def _lr_schedule(
    optimizer: torch.optim.Optimizer, training: Training, steps: int, done: int
) -> LRScheduler | None:
    """The schedule of so many steps, after those that are done; it begins anew at each training."""
    for group in optimizer.param_groups:
        group["lr"] = training.lr
    if training.lr_schedule == "constant" or steps == 0:
        return None
    schedule: LRScheduler
    if training.lr_schedule == "cosine":
        schedule = LambdaLR(optimizer, lambda step: (1 + math.cos(math.pi * step / steps)) / 2)
    else:
        schedule = OneCycleLR(optimizer, training.lr, total_steps=steps, cycle_momentum=False)
    if done:
        LRScheduler.load_state_dict(schedule, {"last_epoch": done - 1, "_step_count": done + 1})
        schedule.step()
    return schedule
