"""The cooperative game of a layer: unit groups are the players, losses the coalitions' values."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, partial
from typing import Any

import torch

from pruning_lab.attributions.base import Site
from pruning_lab.attributions.observation.batches import Room
from pruning_lab.attributions.observation.checks import check_graded
from pruning_lab.attributions.unit_groups import count_of, keep_rows
from pruning_lab.partial_forward.cut import Cut, ModelCut, State
from pruning_lab.partial_forward.first_layer import Units
from pruning_lab.profiling import passes


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
        precision: AbstractContextManager[None] | None = None,
    ) -> None:
        self._cut, self._sites, self._state, self._losses = cut, sites, state, losses
        self._precision = precision or nullcontext()
        self._activation = sites[0].by_unit(state.activation)
        self.samples, self.device = len(state), self._activation.device
        self.dtype = self._activation.dtype
        self.rows = room.rows if state.stackable else self.samples
        self._taped = room.taped if state.stackable else self.samples
        self.players = count_of(site.row for site in sites) or self._activation.shape[1]

    def losses(self, keep: torch.Tensor) -> torch.Tensor:
        """Return the losses (coalitions, samples) of ``keep`` (coalitions, samples, players)."""
        every = torch.arange(self.samples, device=self.device)
        chunks = keep.split(max(1, self.rows // self.samples))
        losses = [self._masked(every.repeat(len(masks)), masks.flatten(0, 1)) for masks in chunks]
        return torch.cat(losses).view(keep.shape[:2])

    @torch.enable_grad()
    def gradients(self, keep: torch.Tensor) -> torch.Tensor:
        """Return the gradients of ``losses(keep)`` with respect to ``keep``, in its shape."""
        every = torch.arange(self.samples, device=self.device).repeat(len(keep))
        masks, gradients = keep.flatten(0, 1).split(self._taped), []
        for samples, of_rows in zip(every.split(self._taped), masks, strict=True):
            mask = of_rows.detach().requires_grad_()
            passes.backward(len(samples), self._cut.share_after.backward)
            total = self._masked(samples, mask).sum()
            check_graded(total)
            gradients += torch.autograd.grad(total, mask)
        return torch.cat(gradients).view_as(keep)

    @property
    def ends(self) -> torch.Tensor:
        """A copy of the losses with all players, and with none, (2, samples)."""
        return self._ends.clone()

    @cached_property
    def _ends(self) -> torch.Tensor:
        keep = torch.ones(2, self.samples, self.players, device=self.device)
        keep[1] = 0
        return self.losses(keep)

    def by_both(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return the losses of all players and of half, by masks and by the entry layer if any."""
        every = torch.arange(self.samples, device=self.device)
        order = torch.randperm(self.players, generator=torch.Generator().manual_seed(0))
        order, removed = order.to(self.device).expand(self.samples, -1), max(1, self.players // 2)
        keep = torch.ones(self.samples, self.players, device=self.device)
        full = [self.ends[0]]
        half = [self._masked(every, keep.scatter(1, order[:, :removed], 0.0))]
        if self.units is not None:
            full.append(self._resumed(every, self.units.whole.clone()))  # a ReLU may write to it
            rows = self._feed_entry(every, order, 1)(torch.arange(1, removed + 1))
            half.append(self._resumed(every, rows[0, :, -1]))
        return full, half

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
        for samples, steps, losses in self._coalitions(order, left.tolist(), ways):
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
        for samples, steps, losses in self._coalitions(order, left, ways=1, alone=True):
            rises[samples, order[samples, steps - 1]] = losses[0].double() - full[samples]
        return rises

    def gram(self) -> torch.Tensor | None:
        """Return inner products of what players contribute to the entry layer's output.

        (samples, players, players); None if no entry layer sums over the players.
        """
        if self.units is None or self._cut.entry is None:
            return None
        return self._cut.entry.gram(self.units.own)

    def _coalitions(
        self, order: torch.Tensor, left: list[int], ways: int, alone: bool = False
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Yield samples and steps (from 1 on, below ``left``) of rows, and losses (ways, rows).

        At a step, the players of ``order`` up to it are removed; with ``alone`` only its own.
        ``ways=2``: also those of the reverse order, where they are kept and all others removed.
        """
        most = max(2, *left) - 1
        group = max(1, self.rows // (ways * most)) if self._state.stackable else self.samples
        feed, run = (
            (self._feed_entry, self._resumed) if self.units else (self._feed_masks, self._masked)
        )
        for samples in torch.arange(self.samples).split(group):
            turns = torch.tensor([left[sample] for sample in samples])
            if turns.max() < 2:  # no coalition between all and none
                continue
            fed = feed(samples.to(self.device), order[samples.to(self.device)], ways, alone)
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

    def _feed_entry(
        self, samples: torch.Tensor, order: torch.Tensor, ways: int, alone: bool = False
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return a function: steps -> the entry layer's outputs, (ways, samples, steps, ...)."""
        assert self.units is not None
        assert self._cut.entry is not None
        entry, inputs, none = self._cut.entry, self.units.own[samples], self.units.none
        full = self.units.whole[samples].unsqueeze(1)
        total = torch.zeros_like(full)

        def fed(steps: torch.Tensor) -> torch.Tensor:
            nonlocal total
            turns = order[:, int(steps[0]) - 1 : int(steps[-1])]
            removed = entry.contributions(inputs, turns).view(*turns.shape, *full.shape[2:])
            if not alone:
                torch.cumsum(removed, 1, out=removed).add_(total)
                total = removed[:, -1:].clone()
            if ways == 1:
                return torch.sub(full, removed, out=removed).unsqueeze(0)
            rows = torch.stack([removed, removed])
            torch.sub(full, removed, out=rows[0])
            rows[1] += none
            return rows

        return fed

    def _feed_masks(
        self, samples: torch.Tensor, order: torch.Tensor, ways: int, alone: bool = False
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return a function: steps -> masks of the kept players, in the same shape."""
        turn = order.argsort(1).unsqueeze(1)

        def fed(steps: torch.Tensor) -> torch.Tensor:
            step = steps.to(self.device)[:, None] - 1
            removed = turn == step if alone else turn <= step
            return torch.stack([~removed, removed][:ways])

        return fed

    @cached_property
    def units(self) -> Units | None:
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
                with self._precision:
                    output = run(samples, rows)
                return self._losses(output, samples)
            except torch.cuda.OutOfMemoryError:
                if len(rows) == 1 or not self._state.stackable:
                    raise
                at_once = -(-len(rows) // 2)
        parts = zip(samples.split(at_once), rows.split(at_once), strict=True)
        return torch.cat([self._run(run, *part) for part in parts])
