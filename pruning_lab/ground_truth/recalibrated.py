"""Outputs of a network with sets of units set to 0 and BatchNorm recalibrated for each set."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
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
from pruning_lab.partial_forward.cut import Cut, ModelCut, State
from pruning_lab.runtime.inputs import Inputs, inputs_and_target, move
from pruning_lab.tasks.task import Task
from pruning_lab.training.recalibration import with_statistics

MOST = 256
"""Largest batch of pictures, as in ``training.recalibrate``."""

Run = Callable[[State, torch.Tensor], Any]
"""(state of a batch, mask of the remaining units) -> the model's output for the batch."""


class Outcomes(NamedTuple):
    """Results of a network with sets of units removed, (samples, sets) each.

    ``losses`` are in nats; ``right`` marks the samples that are right.
    """

    losses: np.ndarray
    right: np.ndarray


def calibration_pictures(train: Dataset, samples: int, generator: torch.Generator) -> list[Inputs]:
    """Return the inputs of ``samples`` random training samples, in batches of equal size.

    At least two samples are taken, and none for ``samples=0``. If they fit into one batch, it is
    the one that ``training.recalibrate`` would use with the same generator.
    """
    if not samples:
        return []
    order = torch.randperm(len(train), generator=generator)  # type: ignore[arg-type]
    chosen = order[: max(2, samples)].tolist()
    size = -(-len(chosen) // -(-len(chosen) // MOST))
    return [inputs_and_target(batch)[0] for batch in loader(Subset(train, chosen), size)]


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
        super().__init__(model, batches, task.criterion, device, "none", **options)
        self.task = task

    @torch.no_grad()
    def outcomes(
        self, unit_groups: UnitGroups, removed: np.ndarray, pictures: Sequence[Inputs]
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
                buffers, statistics = metric._statistics(cut, run, keep, pictures)
                return metric._answers(cut, run, keep, buffers, statistics)

    def _statistics(
        self, cut: ModelCut, run: Run, keep: torch.Tensor, pictures: Sequence[Inputs]
    ) -> tuple[list[torch.Tensor], list[list[torch.Tensor]]]:
        """Return the buffers of BatchNorm after the removed units, and their values for each set.

        ``at_rest`` restores mode, momentum and statistics of the layers afterwards.
        """
        norms = with_statistics(self.model)
        if not (norms and pictures):
            return [], [[] for _ in keep]
        for norm in norms:
            norm.momentum = None  # the plain mean over batches
            norm.train()
        after = self._norms_after(cut, run, keep[0], norms)
        buffers = [buffer for norm in after for buffer in norm.buffers()]
        statistics = [[buffer.clone() for buffer in buffers] for _ in keep]
        for batch in pictures:
            state = cut.before(move(batch, self.device, copy=True))
            for kept, own in zip(keep, statistics, strict=True):
                _copy(own, buffers)
                run(state, kept)
                _copy(buffers, own)
        self.model.eval()
        return buffers, statistics

    def _norms_after(
        self, cut: ModelCut, run: Run, kept: torch.Tensor, norms: list[Any]
    ) -> list[Any]:
        """Find the BatchNorm layers that run after the removed units; reset all statistics.

        Raises UserError for a layer that also runs before them: both uses share its statistics.
        """
        for norm in norms:
            norm.reset_running_stats()
        state = cut.before(self.batches.example())
        before = {norm: int(norm.num_batches_tracked) for norm in norms}
        run(state, kept)
        after = [norm for norm, runs in before.items() if norm.num_batches_tracked > runs]
        if isinstance(cut, Cut) and any(before[norm] for norm in after):
            raise UserError(
                "A BatchNorm layer runs both before and after the removed units, so its statistics "
                "cannot be made anew for them alone. Set truth.recalibrate=0, or give each place a "
                "layer of its own."
            )
        for norm in norms:
            norm.reset_running_stats()
        return after

    def _answers(
        self,
        cut: ModelCut,
        run: Run,
        keep: torch.Tensor,
        buffers: list[torch.Tensor],
        statistics: list[list[torch.Tensor]],
    ) -> Outcomes:
        """Run the test samples through the network for each set, with the set's statistics."""
        batches = []
        for inputs, target in self.batches.read(self.samples):
            state, answers = cut.before(inputs), []
            for kept, own in zip(keep, statistics, strict=True):
                _copy(own, buffers)
                output = run(state, kept)
                correct = self.task.observe(self.task.output(output), target)["correct"]
                answers.append((self._losses(output, target).double(), correct))
            batches.append([torch.stack(values, 1) for values in zip(*answers, strict=True)])
        losses, right = (torch.cat(parts).cpu().numpy() for parts in zip(*batches, strict=True))
        return Outcomes(losses, right)


def _copy(values: Sequence[torch.Tensor], to: Sequence[torch.Tensor]) -> None:
    for value, tensor in zip(values, to, strict=True):
        tensor.copy_(value)
