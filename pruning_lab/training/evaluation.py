"""Measure a model on a data set."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.data import Dataset

from pruning_lab.datasets import loader
from pruning_lab.runtime.inputs import in_float32, move
from pruning_lab.runtime.model_state import evaluating
from pruning_lab.tasks.task import Samples, Task


@dataclass(frozen=True)
class Evaluation:
    """Results of all N samples of a data set, in its order, and the measures over them.

    ``samples``: ``losses`` (N,) and what ``Task.observe`` gives, (N, ...); ``values``: by measure.
    """

    samples: Samples
    values: dict[str, float]


@torch.no_grad()
def evaluate(model: nn.Module, dataset: Dataset, task: Task, batch_size: int = 256) -> Evaluation:
    """Evaluate a model on a data set in eval mode, then restore the mode of every module."""
    device = next(model.parameters()).device
    results: list[dict[str, torch.Tensor]] = []
    with evaluating(model):
        for batch in loader(dataset, batch_size):
            batch = move(batch, device)
            output, target = in_float32(task.run(model, batch)), task.target(batch)
            losses = task.loss(output, target, reduction="none")
            losses = losses.flatten(1).mean(1) if losses.ndim > 1 else losses
            results.append({"losses": losses, **task.observe(output, target)})
    samples = {key: torch.cat([r[key] for r in results]).cpu().numpy() for key in results[0]}
    return Evaluation(samples, task.measure(samples))
