"""The cooperative game of a layer: unit groups are the players, losses the coalitions' values."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, partial
from typing import Any

import torch

from pruning_lab.attributions.base import Site, by_unit
from pruning_lab.attributions.observation.checks import check_graded
from pruning_lab.attributions.observation.memory import Room
from pruning_lab.attributions.unit_groups import keep_rows
from pruning_lab.partial_forward.cut import Cut, State
from pruning_lab.partial_forward.first_layer import Units
from pruning_lab.partial_forward.interface import ModelCut
from pruning_lab.profiling import passes

Walked = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Samples and steps of the evaluated rows, and their losses (ways, rows)."""

Feed = Callable[[torch.Tensor], torch.Tensor]
"""Steps -> the inputs at these steps, (ways, samples, steps, ...)."""

Feeder = Callable[[torch.Tensor, torch.Tensor, int], Feed]
"""Samples, the permutation of their players, and ways (2: also its reverse) -> a Feed."""


class Game:
    """The losses of samples when only some of the players are kept and the others are set to 0.

    ``state`` is what ``cut`` computed of the samples. A row is one sample under one coalition.
    ``losses(output, samples)`` returns the loss of each row of the model's output; ``room`` limits
    the rows of a pass. The *entry layer* is the first one after the site that sums over the units.
    """

    def __init__(
        self,
        cut: ModelCut,
        sites: Sequence[Site],
        state: State,
        losses: Callable[[Any, torch.Tensor], torch.Tensor],
        room: Room,
        precision: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._cut, self._sites, self._losses, self._precision = cut, sites, losses, precision
        self._state = state
        self._activation = by_unit(state.activation, sites[0].axis, sites[0].module)
        self.samples, self.device = len(state), self._activation.device
        self.dtype = self._activation.dtype
        self.rows = room.rows if state.stackable else self.samples
        self._taped = room.taped if state.stackable else self.samples
        given = [site.row for site in sites if site.row is not None]
        self.players = (
            int(max(row.max() for row in given)) + 1 if given else self._activation.shape[1]
        )

    def losses(self, keep: torch.Tensor) -> torch.Tensor:
        """Return the losses (coalitions, samples) of ``keep`` (coalitions, samples, players)."""
        every = torch.arange(self.samples, device=self.device)
        at_once = max(1, self.rows // self.samples)
        losses = [
            self._masked(every.repeat(len(masks)), masks.flatten(0, 1)).view(len(masks), -1)
            for masks in keep.split(at_once)
        ]
        return torch.cat(losses)

    def gradients(self, keep: torch.Tensor) -> torch.Tensor:
        """Return the gradients of ``losses(keep)`` with respect to ``keep``, in its shape."""
        samples = torch.arange(self.samples, device=self.device).repeat(len(keep))
        masks = keep.flatten(0, 1).split(self._taped)
        rows = zip(samples.split(self._taped), masks, strict=True)
        gradients = [self._gradient(*chunk) for chunk in rows]
        return torch.cat(gradients).view_as(keep)

    @torch.enable_grad()
    def _gradient(self, samples: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        keep = keep.detach().requires_grad_()
        passes.backward(len(samples), self._cut.share_after.backward)
        total = self._masked(samples, keep).sum()
        check_graded(total)
        (gradient,) = torch.autograd.grad(total, keep)
        return gradient

    @property
    def ends(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies of the losses with all players and with none, (samples,) each."""
        full, none = self._ends
        return full.clone(), none.clone()

    @cached_property
    def _ends(self) -> tuple[torch.Tensor, torch.Tensor]:
        keep = torch.ones(2, self.samples, self.players, device=self.device)
        keep[1] = 0
        full, none = self.losses(keep)
        return full, none

    def full_by_entry(self) -> torch.Tensor:
        """Return the losses with all players, (samples,), if possible through the entry layer."""
        if self._units is None:
            return self.ends[0]
        every = torch.arange(self.samples, device=self.device)
        return self._resumed(every, self._units.whole.clone())  # an in-place ReLU may follow

    def half(self) -> list[torch.Tensor]:
        """Return the losses (samples,) without half of the players, by masks and by entry layer."""
        every = torch.arange(self.samples, device=self.device)
        order = torch.randperm(self.players, generator=torch.Generator().manual_seed(0))
        order, removed = order.to(self.device).expand(self.samples, -1), max(1, self.players // 2)
        keep = torch.ones(self.samples, self.players, device=self.device)
        losses = [self._masked(every, keep.scatter(1, order[:, :removed], 0.0))]
        if self._units is not None:
            rows = self._sums(every, order, 1)(torch.arange(1, removed + 1))
            losses.append(self._resumed(every, rows[0, :, -1]))
        return losses

    @cached_property
    def alive(self) -> torch.Tensor:
        """Mask of the players that can matter, (samples, players): their activation is not 0."""
        every = torch.ones(self.samples, self.players, dtype=torch.bool, device=self.device)
        if len(self._sites) > 1 or not self._state.stackable:
            return every
        active, row = self._activation.ne(0).any(2), self._sites[0].row
        if row is None:
            return active
        moving = row >= 0
        index = row[moving].to(self.device).expand(self.samples, -1)
        return (~every).scatter_add(1, index, active[:, moving.to(self.device)])

    def walk(self, order: torch.Tensor, ways: int = 2) -> torch.Tensor:
        """Return the rise of the loss at each player's removal in ``order``, and in its reverse.

        ``order`` is (samples, players); the result (ways, samples, players), indexed by player.
        With ``ways=1`` the reverse is left out.
        """
        full, none = self.ends
        dead = ~self.alive.gather(1, order)  # removal changes nothing: removed last
        order = order.gather(1, dead.byte().argsort(dim=1, stable=True))
        left = self.alive.sum(1)
        none = torch.where(left > 0, none, full)
        step = torch.arange(self.players + 1, device=self.device)
        ended = (step > 0) & (step >= left[:, None])
        ends = (full[:, None], none[:, None])
        path = torch.stack(  # losses with so many players removed, and with so many kept
            [torch.where(ended, ends[1 - way], ends[way]) for way in range(ways)]
        ).double()
        feeds = (self._sums, self._masks)
        for samples, steps, losses in self._coalitions(order, left.tolist(), ways, feeds):
            path[:, samples, steps] = losses.double()
        rises = path.diff()
        rises[1:] *= -1
        return torch.empty_like(rises).scatter_(2, order.expand_as(rises), rises)

    def removals(self) -> torch.Tensor:
        """Return the rise of the loss when a single player is removed, (samples, players)."""
        order = (~self.alive).byte().argsort(dim=1, stable=True)  # dead players change nothing
        left = (self.alive.sum(1) + 1).tolist()
        full = self.ends[0].double()
        rises = torch.zeros(order.shape, dtype=torch.float64, device=self.device)
        for samples, steps, losses in self._coalitions(order, left, 1, (self._others, self._all)):
            rises[samples, order[samples, steps - 1]] = losses[0].double() - full[samples]
        return rises

    def gram(self) -> torch.Tensor | None:
        """Return inner products of what players contribute to the entry layer's output.

        (samples, players, players); None if no entry layer sums over the players.
        """
        if self._units is None or self._cut.entry is None:
            return None
        return self._cut.entry.gram(self._units.own)

    def _coalitions(
        self, order: torch.Tensor, left: list[int], ways: int, feeds: tuple[Feeder, Feeder]
    ) -> Iterator[Walked]:
        """Yield the losses at the steps from 1 on that are below ``left``.

        ``feeds`` make the inputs: the first through the entry layer, the second by masks.
        """
        most = max(2, *left) - 1
        group = max(1, self.rows // (ways * most)) if self._state.stackable else self.samples
        feed, run = (feeds[0], self._resumed) if self._units else (feeds[1], self._masked)
        for samples in torch.arange(self.samples).split(group):
            turns = torch.tensor([left[sample] for sample in samples])
            if turns.max() < 2:  # no coalition between all and none
                continue
            fed = feed(samples.to(self.device), order[samples.to(self.device)], ways)
            steps = torch.arange(1, int(turns.max()))
            for chunk in steps.split(max(1, self.rows // (ways * len(samples)))):
                rows = fed(chunk)  # (ways, samples, steps, ...)
                sample, step = (chunk < turns[:, None]).nonzero(as_tuple=True)
                if len(sample) == len(samples) * len(chunk):
                    rows = rows.flatten(1, 2)
                else:
                    rows = rows[:, sample.to(self.device), step.to(self.device)]
                places = samples[sample].to(self.device)
                losses = run(places.repeat(ways), rows.flatten(0, 1))
                yield places, chunk[step].to(self.device), losses.view(ways, -1)

    def _sums(self, samples: torch.Tensor, order: torch.Tensor, ways: int) -> Feed:
        """Feed the entry layer's outputs: each step changes them by one player's contribution."""
        assert self._units is not None
        assert self._cut.entry is not None
        entry, inputs, none = self._cut.entry, self._units.own[samples], self._units.none
        full = self._units.whole[samples].unsqueeze(1)
        total = torch.zeros_like(full)

        def fed(steps: torch.Tensor) -> torch.Tensor:
            nonlocal total
            turns = order[:, int(steps[0]) - 1 : int(steps[-1])]
            contributed = entry.contributions(inputs, turns).view(*turns.shape, *full.shape[2:])
            sums = torch.cumsum(contributed, 1, out=contributed).add_(total)
            total = sums[:, -1:].clone()
            if ways == 1:
                return torch.sub(full, sums, out=sums).unsqueeze(0)
            rows = torch.stack([sums, sums])
            torch.sub(full, sums, out=rows[0])
            rows[1] += none
            return rows

        return fed

    def _others(self, samples: torch.Tensor, order: torch.Tensor, ways: int) -> Feed:
        """Feed the entry layer's outputs without the contribution of the step's player."""
        assert self._units is not None
        assert self._cut.entry is not None
        entry, inputs = self._cut.entry, self._units.own[samples]
        full = self._units.whole[samples].unsqueeze(1)

        def fed(steps: torch.Tensor) -> torch.Tensor:
            turns = order[:, int(steps[0]) - 1 : int(steps[-1])]
            contributed = entry.contributions(inputs, turns).view(*turns.shape, *full.shape[2:])
            return torch.sub(full, contributed, out=contributed).unsqueeze(0)

        return fed

    def _all(self, samples: torch.Tensor, order: torch.Tensor, ways: int) -> Feed:
        """Feed masks that keep all players except the step's."""
        turn = order.argsort(1).unsqueeze(1)
        return lambda steps: (turn != steps.to(self.device)[:, None] - 1).unsqueeze(0)

    def _masks(self, samples: torch.Tensor, order: torch.Tensor, ways: int) -> Feed:
        """Feed masks of the players that are kept at each step."""
        turn = order.argsort(1).unsqueeze(1)

        def fed(steps: torch.Tensor) -> torch.Tensor:
            removed = turn < steps.to(self.device)[:, None]
            return torch.stack([~removed, removed][:ways])

        return fed

    @property
    def by_entry(self) -> bool:
        """True if permutations are evaluated through the entry layer, player by player."""
        return self._units is not None

    @cached_property
    def _units(self) -> Units | None:
        """The players' inputs to the entry layer; None if they cannot be separated."""
        entry, (site, *further) = self._cut.entry, self._sites
        if entry is None or further or site.row is not None or not self._state.stackable:
            return None
        return entry.units(self._state.activation)

    def _masked(self, samples: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """Return the losses of rows: a sample each, and the mask of the players kept."""

        def run(samples: torch.Tensor, keep: torch.Tensor) -> Any:
            keep = keep.to(self._activation.dtype)
            masks = [keep_rows(keep, site.row) for site in self._sites]
            return self._cut.after(self._state, samples, masks)

        return self._run(run, samples, keep)

    def _resumed(self, samples: torch.Tensor, entered: torch.Tensor) -> torch.Tensor:
        """Return the losses of rows: a sample each, and the entry layer's output for it."""
        assert isinstance(self._cut, Cut)
        return self._run(partial(self._cut.resume, self._state), samples, entered)

    def _run(
        self, run: Callable[..., Any], samples: torch.Tensor, rows: torch.Tensor
    ) -> torch.Tensor:
        """Return the losses of rows; halves the rows of a pass while a GPU runs out of memory."""
        at_once = len(rows) if self._state.stackable else self.samples
        if len(rows) <= at_once:
            try:
                with self._precision():
                    output = run(samples, rows)
                return self._losses(output, samples)
            except torch.cuda.OutOfMemoryError:
                if len(rows) == 1 or not self._state.stackable:
                    raise
                at_once = -(-len(rows) // 2)
        parts = zip(samples.split(at_once), rows.split(at_once), strict=True)
        return torch.cat([self._run(run, *part) for part in parts])
