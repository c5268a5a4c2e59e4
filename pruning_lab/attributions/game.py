"""The cooperative game of a layer: its units are the players, a coalition pays the model's loss."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, partial
from typing import Any

import torch

from pruning_lab import ledger
from pruning_lab.attributions.base import Site, by_unit
from pruning_lab.attributions.checks import check_graded
from pruning_lab.attributions.memory import Room
from pruning_lab.attributions.players import keep_rows
from pruning_lab.graph.cut import Cut, State
from pruning_lab.graph.entry import Units
from pruning_lab.graph.hooked import HookedCut

Walked = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Samples and steps of rows, and the losses (ways, rows)."""

Feed = Callable[[torch.Tensor], torch.Tensor]
"""Steps -> what goes in at these steps, (ways, samples, steps, ...)."""

Feeder = Callable[[torch.Tensor, torch.Tensor, int], Feed]
"""Samples, the order in which their players go, and ways -> what goes in."""


class Game:
    """The losses of samples when only some of the players are kept, the others at 0.

    ``state`` is what ``cut`` has of the samples. A row is one sample under one coalition.
    ``losses(output, samples)`` gives the loss of each row of the model's output; ``room`` says how
    many rows go through the model at once.
    """

    def __init__(
        self,
        cut: Cut | HookedCut,
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
        """The losses (coalitions, samples) of ``keep`` (coalitions, samples, players)."""
        every = torch.arange(self.samples, device=self.device)
        at_once = max(1, self.rows // self.samples)
        found = [
            self._masked(every.repeat(len(some)), some.flatten(0, 1)).view(len(some), -1)
            for some in keep.split(at_once)
        ]
        return torch.cat(found)

    def gradients(self, keep: torch.Tensor) -> torch.Tensor:
        """The gradients of ``losses(keep)`` with respect to ``keep``, of its shape."""
        samples = torch.arange(self.samples, device=self.device).repeat(len(keep))
        masks = keep.flatten(0, 1).split(self._taped)
        rows = zip(samples.split(self._taped), masks, strict=True)
        found = [self._gradient(*some) for some in rows]
        return torch.cat(found).view_as(keep)

    @torch.enable_grad()
    def _gradient(self, samples: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        keep = keep.detach().requires_grad_()
        ledger.backward(len(samples), self._cut.share_after.backward)
        total = self._masked(samples, keep).sum()
        check_graded(total)
        (found,) = torch.autograd.grad(total, keep)
        return found

    @property
    def ends(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The losses with all players and with none, (samples,) each; copies."""
        full, none = self._ends
        return full.clone(), none.clone()

    @cached_property
    def _ends(self) -> tuple[torch.Tensor, torch.Tensor]:
        keep = torch.ones(2, self.samples, self.players, device=self.device)
        keep[1] = 0
        full, none = self.losses(keep)
        return full, none

    def full_by_entry(self) -> torch.Tensor:
        """The losses with all players (samples,), by what the entry's layer gives, where it is."""
        if self._units is None:
            return self.ends[0]
        every = torch.arange(self.samples, device=self.device)
        return self._resumed(every, self._units.whole.clone())  # an in-place ReLU may come next

    def half(self) -> list[torch.Tensor]:
        """The losses without half of the players, drawn, (samples,): by masks, and by the entry."""
        every = torch.arange(self.samples, device=self.device)
        order = torch.randperm(self.players, generator=torch.Generator().manual_seed(0))
        order, gone = order.to(self.device).expand(self.samples, -1), max(1, self.players // 2)
        keep = torch.ones(self.samples, self.players, device=self.device)
        found = [self._masked(every, keep.scatter(1, order[:, :gone], 0.0))]
        if self._units is not None:
            rows = self._sums(every, order, 1)(torch.arange(1, gone + 1))
            found.append(self._resumed(every, rows[0, :, -1]))
        return found

    @cached_property
    def alive(self) -> torch.Tensor:
        """Which players (samples, players) may matter: not those whose activation is 0 anyway."""
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
        """By what the loss rises at each player's turn when they go in ``order``, and in reverse.

        ``order`` is (samples, players); the result (2, samples, players), by player. With one of
        the two ``ways`` the reverse is left out.
        """
        full, none = self.ends
        dead = ~self.alive.gather(1, order)  # their turn changes nothing: they go last
        order = order.gather(1, dead.byte().argsort(dim=1, stable=True))
        left = self.alive.sum(1)
        none = torch.where(left > 0, none, full)
        step = torch.arange(self.players + 1, device=self.device)
        begun = (step > 0) & (step >= left[:, None])
        ends = (full[:, None], none[:, None])
        path = torch.stack(  # the losses when so many are gone, and when so many are left
            [torch.where(begun, ends[1 - way], ends[way]) for way in range(ways)]
        ).double()
        feeds = (self._sums, self._masks)
        for samples, steps, losses in self._coalitions(order, left.tolist(), ways, feeds):
            path[:, samples, steps] = losses.double()
        rises = path.diff()
        rises[1:] *= -1
        return torch.empty_like(rises).scatter_(2, order.expand_as(rises), rises)

    def removals(self) -> torch.Tensor:
        """By what the loss rises when one player goes and all others stay, (samples, players)."""
        order = (~self.alive).byte().argsort(dim=1, stable=True)  # the others change nothing
        left = (self.alive.sum(1) + 1).tolist()
        full = self.ends[0].double()
        rises = torch.zeros(order.shape, dtype=torch.float64, device=self.device)
        for samples, steps, losses in self._coalitions(order, left, 1, (self._others, self._all)):
            rises[samples, order[samples, steps - 1]] = losses[0].double() - full[samples]
        return rises

    def gram(self) -> torch.Tensor | None:
        """Inner products of what players bring to the layer behind, (samples, players, players).

        None where no single layer behind sums over them.
        """
        if self._units is None or self._cut.entry is None:
            return None
        return self._cut.entry.gram(self._units.own)

    def _coalitions(
        self, order: torch.Tensor, left: list[int], ways: int, feeds: tuple[Feeder, Feeder]
    ) -> Iterator[Walked]:
        """The losses at the steps from 1 on that are below ``left``.

        ``feeds`` say what goes in, where it goes in by the entry's layer and where by masks.
        """
        most = max(2, *left) - 1
        group = max(1, self.rows // (ways * most)) if self._state.stackable else self.samples
        feed, run = (feeds[0], self._resumed) if self._units else (feeds[1], self._masked)
        for samples in torch.arange(self.samples).split(group):
            turns = torch.tensor([left[sample] for sample in samples])
            if turns.max() < 2:  # between all and none there is nothing
                continue
            fed = feed(samples.to(self.device), order[samples.to(self.device)], ways)
            steps = torch.arange(1, int(turns.max()))
            for some in steps.split(max(1, self.rows // (ways * len(samples)))):
                rows = fed(some)  # (ways, samples, steps, ...)
                sample, step = (some < turns[:, None]).nonzero(as_tuple=True)
                if len(sample) == len(samples) * len(some):
                    rows = rows.flatten(1, 2)
                else:
                    rows = rows[:, sample.to(self.device), step.to(self.device)]
                places = samples[sample].to(self.device)
                losses = run(places.repeat(ways), rows.flatten(0, 1))
                yield places, some[step].to(self.device), losses.view(ways, -1)

    def _sums(self, samples: torch.Tensor, order: torch.Tensor, ways: int) -> Feed:
        """What the entry's layer gives, step by step: each player takes its contribution along."""
        assert self._units is not None
        assert self._cut.entry is not None
        entry, own, none = self._cut.entry, self._units.own[samples], self._units.none
        whole = self._units.whole[samples].unsqueeze(1)
        total = torch.zeros_like(whole)

        def fed(steps: torch.Tensor) -> torch.Tensor:
            nonlocal total
            turns = order[:, int(steps[0]) - 1 : int(steps[-1])]
            contributed = entry.contributions(own, turns).view(*turns.shape, *whole.shape[2:])
            sums = torch.cumsum(contributed, 1, out=contributed).add_(total)
            total = sums[:, -1:].clone()
            if ways == 1:
                return torch.sub(whole, sums, out=sums).unsqueeze(0)
            rows = torch.stack([sums, sums])
            torch.sub(whole, sums, out=rows[0])
            rows[1] += none
            return rows

        return fed

    def _others(self, samples: torch.Tensor, order: torch.Tensor, ways: int) -> Feed:
        """What the entry's layer gives without the contribution of the step's player."""
        assert self._units is not None
        assert self._cut.entry is not None
        entry, own = self._cut.entry, self._units.own[samples]
        whole = self._units.whole[samples].unsqueeze(1)

        def fed(steps: torch.Tensor) -> torch.Tensor:
            turns = order[:, int(steps[0]) - 1 : int(steps[-1])]
            contributed = entry.contributions(own, turns).view(*turns.shape, *whole.shape[2:])
            return torch.sub(whole, contributed, out=contributed).unsqueeze(0)

        return fed

    def _all(self, samples: torch.Tensor, order: torch.Tensor, ways: int) -> Feed:
        """All players but that of the step."""
        turn = order.argsort(1).unsqueeze(1)
        return lambda steps: (turn != steps.to(self.device)[:, None] - 1).unsqueeze(0)

    def _masks(self, samples: torch.Tensor, order: torch.Tensor, ways: int) -> Feed:
        """Which players are kept, step by step."""
        turn = order.argsort(1).unsqueeze(1)

        def fed(steps: torch.Tensor) -> torch.Tensor:
            gone = turn < steps.to(self.device)[:, None]
            return torch.stack([~gone, gone][:ways])

        return fed

    @property
    def by_entry(self) -> bool:
        """Whether walks go in through the first layer behind, player by player."""
        return self._units is not None

    @cached_property
    def _units(self) -> Units | None:
        """What every player brings to the first layer behind, where that can be told apart."""
        entry, (site, *others) = self._cut.entry, self._sites
        if entry is None or others or site.row is not None or not self._state.stackable:
            return None
        return entry.units(self._state.activation)

    def _masked(self, samples: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """The losses of rows: one sample each, and the players that are kept of it."""

        def run(samples: torch.Tensor, keep: torch.Tensor) -> Any:
            keep = keep.to(self._activation.dtype)
            masks = [keep_rows(keep, site.row) for site in self._sites]
            return self._cut.after(self._state, samples, masks)

        return self._run(run, samples, keep)

    def _resumed(self, samples: torch.Tensor, entered: torch.Tensor) -> torch.Tensor:
        """The losses of rows: one sample each, and what the entry's layer gives for it."""
        assert isinstance(self._cut, Cut)
        return self._run(partial(self._cut.resume, self._state), samples, entered)

    def _run(
        self, run: Callable[..., Any], samples: torch.Tensor, rows: torch.Tensor
    ) -> torch.Tensor:
        """The losses of rows; where a GPU's memory does not do for all, half of them at a time."""
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
