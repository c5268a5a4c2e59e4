"""How long a sample takes on this device, measured."""

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from pruning_lab.attributions.base import at_rest
from pruning_lab.datasets import Splits, loader
from pruning_lab.errors import UserError
from pruning_lab.graph import HookedGraph
from pruning_lab.network import Network
from pruning_lab.random_streams import streams_kept
from pruning_lab.training import Training


@dataclass(frozen=True)
class Speed:
    """Seconds that a sample takes in a batch: forward, back to the first layer, in training."""

    forward: float
    backward: float
    training: float


def speed_of(network: Network, splits: Splits, batch_size: int, training: Training) -> Speed:
    """That of the network as it stands; ``batch_size`` is that of the scoring."""
    model, device = network.model, next(network.model.parameters()).device
    x, target = (each.to(device) for each in next(iter(loader(splits.score, batch_size))))
    first = next(iter(network.layers.values()))

    def there_and_back() -> None:
        output, activations = HookedGraph(model, UserError()).record(x, [first])
        torch.autograd.grad(F.cross_entropy(output, target, reduction="sum"), activations)

    with at_rest(model):
        with torch.no_grad():
            forward = _seconds(lambda: model(x), device) / len(x)
        both = _seconds(there_and_back, device) / len(x)
    return Speed(forward, max(0.0, both - forward), _training_speed(model, splits, training))


def _training_speed(model: nn.Module, splits: Splits, training: Training) -> float:
    """Seconds that a sample takes in training, on a copy."""
    device = next(model.parameters()).device
    x, target = (each.to(device) for each in next(iter(loader(splits.train, training.batch_size))))
    own = copy.deepcopy(model).train()
    optimizer = training.optimizer(own)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(own(x), target).backward()
        optimizer.step()

    with streams_kept([device]):
        return _seconds(step, device) / len(x)


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
