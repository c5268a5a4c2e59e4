"""One score for units that only go together, out of the scores of each of them."""

from collections.abc import Callable

import numpy as np

from pruning_lab.attributions.scores import LayerScores
from pruning_lab.errors import check_choice
from pruning_lab.graph import Group

AGGREGATES: dict[str, Callable[[np.ndarray], float]] = {
    "mean": lambda scores: float(scores.mean()),
    "sum": lambda scores: float(scores.sum()),
    "max": lambda scores: float(scores.max()),
    "first": lambda scores: float(scores[0]),
}
"""``first`` is the score of the first unit in order of execution."""

TOGETHER = "together"
"""Instead of an aggregate of their own scores: units that only go together are one player."""


def group_scores(group: Group, scores: LayerScores, aggregate: str) -> np.ndarray:
    """The score of every player of ``group``, (players,).

    ``scores`` has some or all of the group's layers, (units,) each; every player must have a unit
    in one of them.
    """
    check_choice("aggregate", aggregate, tuple(AGGREGATES))
    members: list[list[float]] = [[] for _ in range(len(group))]
    for layer, players in group.players.items():
        if layer in scores:
            for player, score in zip(players.tolist(), scores[layer].tolist(), strict=True):
                if player >= 0:
                    members[player].append(score)
    return np.array([AGGREGATES[aggregate](np.array(each)) for each in members])
