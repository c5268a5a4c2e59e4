"""Recompute the running statistics of BatchNorm layers."""

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset, Subset

from pruning_lab.datasets import loader
from pruning_lab.graph.kinds import BatchNorm
from pruning_lab.runtime.inputs import move
from pruning_lab.tasks.task import Task


def with_statistics(model: nn.Module) -> list[Any]:
    """Return the BatchNorm layers that have running statistics."""
    return [m for m in model.modules() if isinstance(m, BatchNorm) and m.running_mean is not None]


@torch.no_grad()
def recalibrate(
    model: nn.Module,
    dataset: Dataset,
    samples: int,
    task: Task,
    generator: torch.Generator,
    batch_size: int = 256,
) -> None:
    """Set BatchNorm's running statistics to their mean over batches of random samples.

    ``samples`` samples are split into batches of at most ``batch_size``, equal in size up to one
    sample. Nothing else changes: Dropout stays off, and no weight moves. Layers without running
    statistics stay as they are, as do all layers if there are fewer than two samples.
    """
    norms = with_statistics(model)
    model.eval()
    # random order: a batch of a sorted data set would have samples of few classes only
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
        for indices in batches:
            batch = next(iter(loader(Subset(dataset, indices.tolist()), len(indices))))
            task.run(model, move(batch, device))
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        model.eval()
