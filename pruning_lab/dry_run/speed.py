"""Measure the time of one sample on this device."""

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from pruning_lab.attributions.base import at_rest
from pruning_lab.datasets import Splits, loader
from pruning_lab.errors import UserError
from pruning_lab.experiment.network import Network
from pruning_lab.partial_forward.hooked import HookedGraph
from pruning_lab.runtime.random_streams import streams_kept
from pruning_lab.tasks.task import Task
from pruning_lab.training.recipe import Training


@dataclass(frozen=True)
class Speed:
    """Seconds that a sample takes in a batch: forward, back to the first layer, in training."""

    forward: float
    backward: float
    training: float


def speed_of(
    network: Network, splits: Splits, task: Task, batch_size: int, training: Training
) -> Speed:
    """Measure a network in its current state; ``batch_size`` is that of the scoring."""
    model, device = network.model, next(network.model.parameters()).device
    batch = task.to(next(iter(loader(splits.score, batch_size))), device)
    (x,), target = task.inputs(batch)[0], task.target(batch)
    first = next(iter(network.layers.values()))

    def there_and_back() -> None:
        output, activations = HookedGraph(model, UserError()).record(x, [first])
        loss = task.loss(task.output(output), target, reduction="sum")
        torch.autograd.grad(loss, activations)

    with at_rest(model):
        with torch.no_grad():
            forward = _seconds(lambda: model(x), device) / len(x)
        both = _seconds(there_and_back, device) / len(x)
    trained = _training_speed(model, splits, task, training)
    return Speed(forward, max(0.0, both - forward), trained)


def _training_speed(model: nn.Module, splits: Splits, task: Task, training: Training) -> float:
    """Seconds that a sample takes in training, on a copy."""
    device = next(model.parameters()).device
    batch = task.to(next(iter(loader(splits.train, training.batch_size))), device)
    own = copy.deepcopy(model).train()
    optimizer = training.optimizer(own)

    def step() -> None:
        optimizer.zero_grad()
        task.loss(task.run(own, batch), task.target(batch)).backward()
        optimizer.step()

    with streams_kept([device]):
        return _seconds(step, device) / task.length(batch)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """The median of up to five runs, of one that takes long; after one to warm up."""
    times: list[float] = []
    work()
    while not times or (len(times) < 5 and sum(times) < 1):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times)
