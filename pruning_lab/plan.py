"""Which units go: scores and a target in, indices out. Nothing is cut here."""

from collections.abc import Callable

import numpy as np

from pruning_lab.errors import UserError
from pruning_lab.schedules import NegativeScores, Schedule, Step, ToTarget

Plan = dict[str, np.ndarray]
"""For every layer the units to remove, ascending, as numbered in the model as it stands."""


def make_plan(
    scores: dict[str, np.ndarray], step: Step, schedule: Schedule, gone: Callable[[Plan], float]
) -> Plan:
    """The plan for one step of ``schedule``.

    ``gone(plan)`` is the share of the original model that would be gone after the plan. Raises
    UserError when scores are not finite or the ratio cannot be reached above the floor.
    """
    for layer, values in scores.items():
        if not np.isfinite(values).all():
            raise UserError(
                f"{int((~np.isfinite(values)).sum())} of {len(values)} scores of layer '{layer}' "
                "are not finite: nothing can be ranked. Does the model give finite losses?"
            )
    if isinstance(schedule, NegativeScores):
        return _below_zero(scores, schedule.min_units)
    if not isinstance(schedule, ToTarget) or step.ratio is None:
        raise TypeError(f"no plan is known for {schedule} and {step}")
    ranked = _ranked(scores, schedule.min_units, schedule.normalise)
    candidate = _by_layer(ranked) if schedule.scope == "per_layer" else _by_rank(ranked)
    return _first_to_reach(step.ratio, candidate, sum(map(len, ranked[0].values())), gone)


def _below_zero(scores: dict[str, np.ndarray], min_units: int) -> Plan:
    """Every unit below 0, the lowest first until the floor is met."""
    plan = {}
    for layer, values in scores.items():
        lowest = values.argsort(kind="stable")[: max(0, len(values) - min_units)]
        plan[layer] = np.sort(lowest[values[lowest] < 0])
    return plan


def _ranked(
    scores: dict[str, np.ndarray], min_units: int, normalise: str
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """For every layer the units that may go, lowest score first, and their comparable scores."""
    order, values = {}, {}
    for layer, raw in scores.items():
        order[layer] = raw.argsort(kind="stable")[: max(0, len(raw) - min_units)]
        values[layer] = raw[order[layer]] / _scale(raw, normalise)
    return order, values


def _scale(values: np.ndarray, normalise: str) -> float:
    if normalise == "none":
        return 1.0
    scale = np.linalg.norm(values) if normalise == "l2" else np.abs(values).max()
    return float(scale) or 1.0  # a layer whose scores are all 0 stays at 0


def _by_rank(
    ranked: tuple[dict[str, np.ndarray], dict[str, np.ndarray]],
) -> Callable[[int], Plan]:
    """Candidate k: the k lowest of all layers together."""
    order, values = ranked
    layers = np.repeat(np.arange(len(order)), [len(units) for units in order.values()])
    lowest_first = np.concatenate(list(values.values())).argsort(kind="stable")

    def candidate(k: int) -> Plan:
        counts = np.bincount(layers[lowest_first[:k]], minlength=len(order))
        return _lowest(order, counts)

    return candidate


def _by_layer(
    ranked: tuple[dict[str, np.ndarray], dict[str, np.ndarray]],
) -> Callable[[int], Plan]:
    """Candidate k: the share k / K of every layer, where K is how many may go in all."""
    order, _ = ranked
    widths = np.array([len(units) for units in order.values()])
    return lambda k: _lowest(order, np.rint(widths * (k / max(1, widths.sum()))).astype(int))


def _lowest(order: dict[str, np.ndarray], counts: np.ndarray) -> Plan:
    return {
        layer: np.sort(units[:count])
        for (layer, units), count in zip(order.items(), counts, strict=True)
    }


def _first_to_reach(
    ratio: float, candidate: Callable[[int], Plan], last: int, gone: Callable[[Plan], float]
) -> Plan:
    """The smallest candidate, by bisection, after which at least ``ratio`` is gone."""
    most = gone(candidate(last))
    if most < ratio:
        raise UserError(
            f"A share of {ratio:.3f} cannot be removed: with the floor of units in every layer at "
            f"most {most:.3f} can go. Lower schedule.target or schedule.min_units."
        )
    low, high = -1, last
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if gone(candidate(middle)) >= ratio else (middle, high)
    return candidate(high)
