"""Score unit groups, and choose those to remove for a target, without changing the model."""

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from pruning_lab.coupling.structure import CoupledLayers
from pruning_lab.errors import UserError, check_choice
from pruning_lab.pruning.schedules import AGGREGATES, GroupByGroup, Schedule, Step, ToTarget

Plan = dict[str, np.ndarray]
"""Coupled layers -> the unit groups to remove, ascending, as numbered in the present model."""

GroupScores = dict[str, np.ndarray]
"""Coupled layers -> scores (unit groups,)."""


def group_scores(
    group: CoupledLayers, scores: Mapping[str, np.ndarray], aggregate: str
) -> np.ndarray:
    """Return the score of every unit group of the coupled layers ``group``, (unit groups,).

    ``scores`` has (units,) for some or all of the layers; every unit group must have a unit in one
    of them. ``aggregate`` is a key of ``AGGREGATES``.
    """
    check_choice("aggregate", aggregate, AGGREGATES)
    scored = {layer: row.numpy() for layer, row in group.unit_groups.items() if layer in scores}
    unit_groups = np.concatenate(list(scored.values()))
    values = np.concatenate([scores[layer] for layer in scored], dtype=float)
    score = AGGREGATES[aggregate]
    return np.array([score(values[unit_groups == number]) for number in range(len(group))])


@dataclass(frozen=True)
class Ranking:
    """The unit groups of coupled layers that may be removed, in the order of removal.

    ``counts`` are the allowed numbers of removed unit groups, ascending, from 0 on: every layer
    keeps its minimum of units, and a multiple where one is required.
    """

    order: np.ndarray
    scores: np.ndarray  # in this order, comparable between groups
    counts: np.ndarray

    def first(self, count: int) -> np.ndarray:
        """Return the first unit groups, ascending: the largest allowed number up to ``count``."""
        allowed = self.counts[np.searchsorted(self.counts, count, side="right") - 1]
        return np.sort(self.order[:allowed])


def make_plan(
    scores: GroupScores,
    groups: Mapping[str, CoupledLayers],
    step: Step,
    schedule: Schedule,
    removed_share: Callable[[Plan], float],
    flops: Mapping[str, np.ndarray] | None = None,
) -> Plan:
    """Return the plan for one step of ``schedule``.

    ``removed_share(plan)`` is the share of the original model that is removed after the plan;
    ``flops`` (unit groups,) are the FLOPs saved by each, needed for a ``flops_penalty``. Raises
    UserError when scores are not finite or the minimum of units makes the ratio impossible.
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
            name: ranking.first(schedule.count(ranking.scores, len(scores[name])))
            for name, ranking in rankings.items()
        }
    if not isinstance(schedule, ToTarget) or step.ratio is None:
        raise TypeError(f"no plan is known for {schedule} and {step}")
    return _smallest_to_reach(step.ratio, rankings, schedule.scope, removed_share)


def _ranking(
    values: np.ndarray, group: CoupledLayers, schedule: Schedule, flops: np.ndarray | None
) -> Ranking:
    """Rank the unit groups of coupled layers, lowest score first, but those that must stay."""
    scale = _scale(values, getattr(schedule, "normalise", "none"))
    if flops is not None and isinstance(schedule, ToTarget):
        values = values - scale * schedule.flops_penalty * flops / 1e6
    takes = np.stack(
        [np.bincount(row[row >= 0], minlength=len(group)) for row in group.unit_groups.values()], 1
    )  # (unit groups, layers): how many units of each layer a unit group has
    widths = np.array([len(row) for row in group.unit_groups.values()])
    floor = -(-schedule.min_units // schedule.multiple_of) * schedule.multiple_of
    remaining, order = widths.copy(), []
    for unit_group in values.argsort(kind="stable"):
        if ((remaining - takes[unit_group] >= floor) | (takes[unit_group] == 0)).all():
            remaining = remaining - takes[unit_group]
            order.append(unit_group)
    after = widths - np.vstack([np.zeros_like(widths), takes[order].cumsum(0)])
    allowed = ((after % schedule.multiple_of == 0) | (after == widths)).all(1)
    places = np.array(order, dtype=int)
    return Ranking(places, values[places] / scale, allowed.nonzero()[0])


def _scale(values: np.ndarray, normalise: str) -> float:
    if normalise == "none":
        return 1.0
    scale = np.linalg.norm(values) if normalise == "l2" else np.abs(values).max()
    return float(scale) or 1.0  # scores that are all 0 stay 0


def _smallest_to_reach(
    ratio: float, rankings: dict[str, Ranking], scope: str, removed_share: Callable[[Plan], float]
) -> Plan:
    """Return the smallest plan that removes at least ``ratio``.

    The lowest scores of all groups together are removed or, with ``scope`` per_layer, the same
    share of every group.
    """
    widths = np.array([len(ranking.order) for ranking in rankings.values()])
    scores = np.concatenate([ranking.scores for ranking in rankings.values()])
    group = np.arange(len(widths)).repeat(widths)[scores.argsort(kind="stable")]  # lowest first
    total = len(group)

    def candidate(k: int) -> Plan:
        """Remove about ``k`` of the ``total`` unit groups."""
        if scope == "per_layer":
            counts = np.rint(widths * (k / max(1, total))).astype(int)
        else:
            counts = np.bincount(group[:k], minlength=len(widths))
        numbered = zip(rankings.items(), counts, strict=True)
        return {name: ranking.first(count) for (name, ranking), count in numbered}

    most = removed_share(candidate(total))
    if most < ratio:
        raise UserError(
            f"A share of {ratio:.3f} cannot be removed: with the minimum of units in every layer "
            f"at most {most:.3f} can be removed. Lower schedule.target, schedule.min_units or "
            "schedule.multiple_of. Layers that keep all their units are listed, with the reason, "
            "at the start of a run and by dry_run=true."
        )
    # a larger candidate removes no less
    return candidate(bisect_left(range(total), ratio, key=lambda k: removed_share(candidate(k))))
