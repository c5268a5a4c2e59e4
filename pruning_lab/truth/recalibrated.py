"""Run a network with sets of a layer's units at 0, and new BatchNorm statistics for each set."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset, Subset

from pruning_lab.attributions.base import at_rest
from pruning_lab.attributions.players import Players, keep_rows
from pruning_lab.attributions.removals import RemovalMetric
from pruning_lab.datasets import loader
from pruning_lab.errors import UserError
from pruning_lab.graph.cut import Cut, State
from pruning_lab.training import with_statistics

MOST = 256
"""Pictures of a batch at most, as in ``training.recalibrate``."""

Statistics = list[torch.Tensor]
"""Running mean, running variance and number of batches of some BatchNorm layers, in a row."""

Run = Callable[[State, torch.Tensor], Any]
"""(state of some samples, which units are kept) -> the model's output for these samples."""


class Outcomes(NamedTuple):
    """Losses and right answers of a network with sets of units removed.

    ``losses`` (samples, sets) are cross-entropies in nats, ``right`` (samples, sets) says whether
    the most probable class is the true one.
    """

    losses: np.ndarray
    right: np.ndarray


def calibration_pictures(
    train: Dataset, samples: int, generator: torch.Generator
) -> list[torch.Tensor]:
    """Return the inputs of ``samples`` random training samples, in batches of equal size.

    They are two at least, and none for ``samples=0``. These are the batches that
    ``training.recalibrate`` would use with the same generator, as long as they fit into one.
    """
    if not samples:
        return []
    order = torch.randperm(len(train), generator=generator)  # type: ignore[arg-type]
    chosen = order[: max(2, samples)].tolist()
    size = -(-len(chosen) // -(-len(chosen) // MOST))
    return [x for x, _ in loader(Subset(train, chosen), size)]


class RecalibratedRemovals(RemovalMetric):
    """Outputs of a network with sets of units removed and its BatchNorm statistics recalibrated.

    Units are put to 0 after BatchNorm and non-linearity, so only the statistics of later layers
    shift. The statistics of all layers are made anew from ``pictures`` as ``training.recalibrate``
    does it after a cut: those before the removed units once, those after them for every set.
    Without pictures, and in networks without BatchNorm, the statistics stay as they are.
    """

    @torch.no_grad()
    def outcomes(
        self, players: Players, removed: np.ndarray, pictures: Sequence[torch.Tensor]
    ) -> Outcomes:
        """Measure the sets ``removed`` (sets, units), True where a unit is removed.

        ``pictures`` are batches of training inputs. Raises UserError where ``removed`` has another
        number of units than the layer, or the network cannot be run in two parts.
        """
        metric = self._with({"removed": removed})
        metric._check_known([players])
        with at_rest(self.model):
            graph, (count,) = metric._opened([players], True)
            metric._at_most(count)  # refuses another number of units
            sites, opened = metric._cut(graph, players, True)
            keep = torch.as_tensor(~removed, dtype=torch.float32, device=self.device)
            with closing(opened) as cut:

                def run(state: State, kept: torch.Tensor) -> Any:
                    rows = kept.to(state.activation.dtype).expand(len(state), -1)
                    every = torch.arange(len(state), device=self.device)
                    return cut.after(state, every, [keep_rows(rows, site.row) for site in sites])

                cut.before(metric.batches.example())  # its first call inspects the model
                after, made = metric._statistics(cut, run, keep, pictures)
                return metric._answers(cut, run, keep, after, made)

    def _statistics(
        self, cut: Any, run: Run, keep: torch.Tensor, pictures: Sequence[torch.Tensor]
    ) -> tuple[list[Any], list[Statistics]]:
        """Return the BatchNorm layers after the removed units, and their statistics by set."""
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

        Raises UserError for one that runs before them as well: its statistics belong to both.
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
            state, own = cut.before(x), list[tuple[torch.Tensor, torch.Tensor]]()
            for kept, statistics in zip(keep, made, strict=True):
                _write(after, statistics)
                output = run(state, kept)
                own.append((self._losses(output, target).double(), output.argmax(1) == target))
            losses.append(torch.stack([loss for loss, _ in own], 1))
            right.append(torch.stack([correct for _, correct in own], 1))
        return Outcomes(torch.cat(losses).cpu().numpy(), torch.cat(right).cpu().numpy())


@contextmanager
def _learning(norms: Sequence[Any]) -> Iterator[None]:
    """Let BatchNorm layers normalise by the batch, and keep the plain mean over batches."""
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
    own = [tensor for norm in norms for tensor in _tensors(norm)]
    for tensor, value in zip(own, statistics, strict=True):
        tensor.copy_(value)
