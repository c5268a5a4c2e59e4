"""Outputs of a network with sets of units set to 0 and BatchNorm recalibrated for each set."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset, Subset

from pruning_lab.attributions.base import at_rest
from pruning_lab.attributions.evidence.removals import RemovalMetric
from pruning_lab.attributions.unit_groups import UnitGroups, keep_rows
from pruning_lab.datasets import loader
from pruning_lab.errors import UserError
from pruning_lab.partial_forward.cut import Cut, State
from pruning_lab.tasks.task import Task
from pruning_lab.training.recalibration import with_statistics

MOST = 256
"""Largest batch of pictures, as in ``training.recalibrate``."""

Statistics = list[torch.Tensor]
"""Running mean, running variance and number of batches of BatchNorm layers, as one list."""

Run = Callable[[State, torch.Tensor], Any]
"""(state of a batch, mask of the kept units) -> the model's output for the batch."""


class Outcomes(NamedTuple):
    """Losses and correct answers of a network with sets of units removed.

    ``losses`` (samples, sets) are in nats; ``right`` (samples, sets) marks correct answers.
    """

    losses: np.ndarray
    right: np.ndarray


def calibration_pictures(
    train: Dataset, samples: int, generator: torch.Generator
) -> list[torch.Tensor]:
    """Return the inputs of ``samples`` random training samples, in batches of equal size.

    At least two samples are taken, and none for ``samples=0``. If they fit into one batch, it is
    the one that ``training.recalibrate`` would use with the same generator.
    """
    if not samples:
        return []
    order = torch.randperm(len(train), generator=generator)  # type: ignore[arg-type]
    chosen = order[: max(2, samples)].tolist()
    size = -(-len(chosen) // -(-len(chosen) // MOST))
    return [x for x, _ in loader(Subset(train, chosen), size)]


class RecalibratedRemovals(RemovalMetric):
    """Outputs of a network with sets of units removed and its BatchNorm statistics recalibrated.

    Units are set to 0 after BatchNorm and non-linearity, so only the statistics of later layers
    shift. The statistics of all layers are recomputed from ``pictures`` as ``training.recalibrate``
    does after a cut: once for layers before the removed units, for every set for layers after them.
    Without pictures, and in networks without BatchNorm, the statistics stay as they are. The task's
    ``observe`` must tell which samples are ``correct``.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        task: Task,
        device: torch.device | str,
        **options: Any,
    ) -> None:
        super().__init__(model, batches, task.loss, device, "none", **options)
        self.task = task

    @torch.no_grad()
    def outcomes(
        self, unit_groups: UnitGroups, removed: np.ndarray, pictures: Sequence[torch.Tensor]
    ) -> Outcomes:
        """Measure the sets ``removed`` (sets, units), True where a unit is removed.

        ``pictures`` are batches of training inputs. Raises UserError if ``removed`` has another
        number of units than the layer, or if the network cannot be run in two parts.
        """
        metric = self._with({"removed": removed})
        metric._check_known([unit_groups])
        with at_rest(self.model):
            graph, (count,) = metric._opened([unit_groups], True)
            metric._at_most(count)  # raises UserError for another number of units
            sites, opened = metric._cut(graph, unit_groups, True)
            keep = torch.as_tensor(~removed, dtype=torch.float32, device=self.device)
            with closing(opened) as cut:

                def run(state: State, kept: torch.Tensor) -> Any:
                    rows = kept.to(state.activation.dtype).expand(len(state), -1)
                    samples = torch.arange(len(state), device=self.device)
                    return cut.after(state, samples, [keep_rows(rows, site.row) for site in sites])

                cut.before(metric.batches.example())  # the first call inspects the model
                after, made = metric._statistics(cut, run, keep, pictures)
                return metric._answers(cut, run, keep, after, made)

    def _statistics(
        self, cut: Any, run: Run, keep: torch.Tensor, pictures: Sequence[torch.Tensor]
    ) -> tuple[list[Any], list[Statistics]]:
        """Return the BatchNorm layers after the removed units, and their statistics per set."""
        norms = with_statistics(self.model)
        if not (norms and pictures):
            return [], [[] for _ in keep]
        with _learning(norms):
            after = self._norms_after(cut, run, keep[0], norms)
            made = [_read(after) for _ in keep]
            for batch in pictures:
                state = cut.before(batch.to(self.device, copy=True))
                for number, kept in enumerate(keep):
                    _write(after, made[number])
                    run(state, kept)
                    made[number] = _read(after)
        return after, made

    def _norms_after(self, cut: Any, run: Run, kept: torch.Tensor, norms: list[Any]) -> list[Any]:
        """Find the BatchNorm layers that run after the removed units; reset all statistics.

        Raises UserError for a layer that also runs before them: both uses share its statistics.
        """
        _reset(norms)
        state = cut.before(self.batches.example())
        before = [norm for norm in norms if norm.num_batches_tracked]
        _reset(norms)
        run(state, kept)
        after = [norm for norm in norms if norm.num_batches_tracked]
        _reset(norms)
        if isinstance(cut, Cut) and not {*before}.isdisjoint(after):
            raise UserError(
                "A BatchNorm layer runs both before and after the removed units, so its statistics "
                "cannot be made anew for them alone. Set truth.recalibrate=0, or give each place a "
                "layer of its own."
            )
        return after

    def _answers(
        self, cut: Any, run: Run, keep: torch.Tensor, after: list[Any], made: list[Statistics]
    ) -> Outcomes:
        """Run the test pictures through the network for each set, with the set's statistics."""
        losses, right = [], []
        for x, target in self.batches.read(self.samples):
            state, answers = cut.before(x), list[tuple[torch.Tensor, torch.Tensor]]()
            for kept, statistics in zip(keep, made, strict=True):
                _write(after, statistics)
                output = run(state, kept)
                correct = self.task.observe(output, target)["correct"]
                answers.append((self._losses(output, target).double(), correct))
            losses.append(torch.stack([loss for loss, _ in answers], 1))
            right.append(torch.stack([correct for _, correct in answers], 1))
        return Outcomes(torch.cat(losses).cpu().numpy(), torch.cat(right).cpu().numpy())


@contextmanager
def _learning(norms: Sequence[Any]) -> Iterator[None]:
    """Let BatchNorm layers normalise by the batch and average their statistics over batches."""
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.momentum = None
            norm.train()
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()


def _reset(norms: Sequence[Any]) -> None:
    for norm in norms:
        norm.reset_running_stats()


def _tensors(norm: nn.Module) -> list[torch.Tensor]:
    return [norm.get_buffer(n) for n in ("running_mean", "running_var", "num_batches_tracked")]


def _read(norms: Sequence[nn.Module]) -> Statistics:
    return [tensor.clone() for norm in norms for tensor in _tensors(norm)]


def _write(norms: Sequence[nn.Module], statistics: Statistics) -> None:
    buffers = [tensor for norm in norms for tensor in _tensors(norm)]
    for tensor, value in zip(buffers, statistics, strict=True):
        tensor.copy_(value)
