"""Fit a model by stochastic gradient descent."""

import math
from collections.abc import Callable
from itertools import islice

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR
from torch.utils.data import Dataset, Subset
from tqdm import tqdm

from pruning_lab.datasets import loader
from pruning_lab.errors import UserError
from pruning_lab.runtime import distributed
from pruning_lab.runtime.inputs import length
from pruning_lab.runtime.model_state import all_tensors, set_tensors
from pruning_lab.tasks.task import Task
from pruning_lab.training.data_parallel import add_up_gradients, loss_share
from pruning_lab.training.recipe import Training


class NullEpochStore:
    """Saves no epochs, so an interrupted training starts again. Subclass it to save them."""

    seconds: float = 0.0
    """Training time before the interruption."""

    def restore(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, order: torch.Generator
    ) -> int:
        """Restore model, optimizer and random streams; return the number of completed epochs."""
        return 0

    def keep(
        self, done: int, model: nn.Module, optimizer: torch.optim.Optimizer, order: torch.Generator
    ) -> None:
        """Save the state after ``done`` epochs."""


def part(dataset: Dataset, share: float, generator: torch.Generator) -> Dataset:
    """Return a random ``share`` of a data set, at least two samples."""
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
    task: Task,
    generator: torch.Generator,
    label: str,
    epochs: NullEpochStore | None = None,
) -> None:
    """Train in place with the settings of ``training``, and leave the model in eval mode.

    ``generator`` draws the order of the samples. With ``epochs``, training resumes after the last
    saved epoch, bit for bit. Several ranks share every batch. Raises UserError as soon as the loss
    is not finite, for a single sample, and if the output depends on no trainable parameter.
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
    epochs = epochs or NullEpochStore()
    done = epochs.restore(model, optimizer, generator)
    step = done * per_epoch
    lr_schedule = _lr_schedule(optimizer, training, steps, step)
    about = {"desc": label, "unit": "batch", "disable": distributed.silent(), "leave": False}
    with tqdm(total=steps, initial=step, **about) as bar:
        for epoch in range(done, -(-steps // max(1, per_epoch))):
            distributed.draw_apart(generator)
            whole = (batch for batch in batches if length(batch) > 1)
            for batch in islice(whole, steps - step):
                step += 1
                bar.update()
                optimizer.zero_grad()
                loss = loss_share(model, batch, task)
                value = _checked(loss, label, epoch, training.lr)
                loss.backward()
                add_up_gradients(model)
                optimizer.step()
                if lr_schedule is not None:
                    lr_schedule.step()
                bar.set_postfix(loss=f"{value:.3f}", refresh=False)
            distributed.lead(model.buffers())  # most are equal; a user's own may not be
            if step < steps:
                epochs.keep(epoch + 1, model, optimizer, generator)
    optimizer.zero_grad()  # not needed any more; a cut would have to slice them
    model.eval()


def _checked(loss: torch.Tensor, label: str, epoch: int, lr: float) -> float:
    """Return the loss of all ranks; UserError if it is not finite or depends on no parameter."""
    if not math.isfinite(value := distributed.total(loss.item())):
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


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """Return a function that restores all that training changes: tensors and optimizer state.

    Attributes that are not tensors are not restored.
    """
    tensors = {name: tensor.detach().clone() for name, tensor in all_tensors(model).items()}
    state = {
        parameter: {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in values.items()}
        for parameter, values in optimizer.state.items()
    }

    def restore() -> None:
        set_tensors(model, tensors)
        optimizer.state.clear()
        optimizer.state.update(state)

    return restore


def _lr_schedule(
    optimizer: torch.optim.Optimizer, training: Training, steps: int, done: int
) -> LRScheduler | None:
    """Return a new schedule of ``steps`` steps, ``done`` of them completed; None if constant."""
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
