"""Which units go: scores and a target in, players of groups out. Nothing is cut here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from pruning_lab.errors import UserError
from pruning_lab.graph import Group
from pruning_lab.schedules import GroupByGroup, Schedule, Step, ToTarget

Plan = dict[str, np.ndarray]
"""For every group the players to remove, ascending, as numbered in the model as it stands."""

GroupScores = dict[str, np.ndarray]
"""group -> (players,)"""


@dataclass(frozen=True)
class Ranking:
    """The players of a group that may go, in the order in which they would.

    ``counts`` are the numbers of players that may go together, ascending, from 0 on: every layer
    keeps its minimum of units, and a multiple where one is wanted.
    """

    order: np.ndarray
    scores: np.ndarray  # of the players in this order, comparable between groups
    counts: np.ndarray

    def first(self, count: int) -> np.ndarray:
        """At most ``count`` players, as many as may go together."""
        allowed = self.counts[np.searchsorted(self.counts, count, side="right") - 1]
        return np.sort(self.order[:allowed])


def make_plan(
    scores: GroupScores,
    groups: Mapping[str, Group],
    step: Step,
    schedule: Schedule,
    gone: Callable[[Plan], float],
    flops: Mapping[str, np.ndarray] | None = None,
) -> Plan:
    """The plan for one step of ``schedule``.

    ``gone(plan)`` is the share of the original model that would be gone after the plan; ``flops``
    are those that go with each player, (players,), which only a ``flops_penalty`` asks for. Raises
    UserError when scores are not finite or the ratio cannot be reached above the floor.
    """
    for name, values in scores.items():
        if not np.isfinite(values).all():
            raise UserError(
                f"{int((~np.isfinite(values)).sum())} of {len(values)} scores of '{name}' are "
                "not finite: nothing can be ranked. Does the model give finite losses?"
            )
    rankings = {
        name: _ranking(values, groups[name], schedule, (flops or {}).get(name))
        for name, values in scores.items()
    }
    if isinstance(schedule, GroupByGroup):
        return {
            name: each.first(schedule.count(each.scores, len(scores[name])))
            for name, each in rankings.items()
        }
    if not isinstance(schedule, ToTarget) or step.ratio is None:
        raise TypeError(f"no plan is known for {schedule} and {step}")
    candidate = _by_group(rankings) if schedule.scope == "per_layer" else _by_rank(rankings)
    return _first_to_reach(step.ratio, candidate, _total(rankings), gone)


def _ranking(
    values: np.ndarray, group: Group, schedule: Schedule, flops: np.ndarray | None
) -> Ranking:
    """The players of one group, lowest score first, without those that some layer must keep."""
    scale = _scale(values, getattr(schedule, "normalise", "none"))
    if flops is not None and isinstance(schedule, ToTarget):
        values = values - scale * schedule.flops_penalty * flops / 1e6
    takes = np.stack(
        [np.bincount(row[row >= 0], minlength=len(group)) for row in group.players.values()], 1
    )  # (players, layers): how many units of each layer go with a player
    widths = np.array([len(row) for row in group.players.values()])
    floor = -(-schedule.min_units // schedule.multiple_of) * schedule.multiple_of
    left, order = widths.copy(), []
    for player in values.argsort(kind="stable"):
        if ((left - takes[player] >= floor) | (takes[player] == 0)).all():
            left = left - takes[player]
            order.append(player)
    after = widths - np.vstack([np.zeros_like(widths), takes[order].cumsum(0)])
    whole = ((after % schedule.multiple_of == 0) | (after == widths)).all(1)
    places = np.array(order, dtype=int)
    return Ranking(places, values[places] / scale, whole.nonzero()[0])


def _scale(values: np.ndarray, normalise: str) -> float:
    if normalise == "none":
        return 1.0
    scale = np.linalg.norm(values) if normalise == "l2" else np.abs(values).max()
    return float(scale) or 1.0  # a group whose scores are all 0 stays at 0


def _total(rankings: dict[str, Ranking]) -> int:
    """How many players may go in all."""
    return sum(len(each.order) for each in rankings.values())


def _by_rank(rankings: dict[str, Ranking]) -> Callable[[int], Plan]:
    """Candidate k: the k lowest of all groups together."""
    group = np.repeat(np.arange(len(rankings)), [len(each.order) for each in rankings.values()])
    scores = np.concatenate([each.scores for each in rankings.values()])
    lowest_first = scores.argsort(kind="stable")

    def candidate(k: int) -> Plan:
        counts = np.bincount(group[lowest_first[:k]], minlength=len(rankings))
        return _lowest(rankings, counts)

    return candidate


def _by_group(rankings: dict[str, Ranking]) -> Callable[[int], Plan]:
    """Candidate k: the share k / K of every group, where K is how many may go in all."""
    widths = np.array([len(each.order) for each in rankings.values()])
    total = max(1, _total(rankings))
    return lambda k: _lowest(rankings, np.rint(widths * (k / total)).astype(int))


def _lowest(rankings: dict[str, Ranking], counts: np.ndarray) -> Plan:
    return {
        name: ranking.first(count)
        for (name, ranking), count in zip(rankings.items(), counts, strict=True)
    }


def _first_to_reach(
    ratio: float, candidate: Callable[[int], Plan], last: int, gone: Callable[[Plan], float]
) -> Plan:
    """The smallest candidate, by bisection, after which at least ``ratio`` is gone."""
    most = gone(candidate(last))
    if most < ratio:
        raise UserError(
            f"A share of {ratio:.3f} cannot be removed: with the floor of units in every layer at "
            f"most {most:.3f} can go. Lower schedule.target, schedule.min_units or "
            "schedule.multiple_of. Layers that keep all their units are listed, with the reason, "
            "at the start of a run and by plan=true."
        )
    low, high = -1, last
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if gone(candidate(middle)) >= ratio else (middle, high)
    return candidate(high)
