"""Combine the scores of coupled units into one score per unit group."""

from collections.abc import Callable

import numpy as np

from pruning_lab.attributions.estimation.scores import LayerScores
from pruning_lab.coupling.structure import CoupledLayers
from pruning_lab.errors import check_choice

BY_NAME: dict[str, Callable[[np.ndarray], float]] = {
    "mean": lambda scores: float(scores.mean()),
    "sum": lambda scores: float(scores.sum()),
    "max": lambda scores: float(scores.max()),
    "first": lambda scores: float(scores[0]),
}
"""Aggregate functions; ``first`` is the score of the first unit in order of execution."""


def group_scores(group: CoupledLayers, scores: LayerScores, aggregate: str) -> np.ndarray:
    """Return the score of every unit group of the coupled layers ``group``, (unit groups,).

    ``scores`` has (units,) for some or all of the layers; every unit group must have a unit in one
    of them. ``aggregate`` is a key of ``BY_NAME``.
    """
    check_choice("aggregate", aggregate, BY_NAME)
    members: list[list[float]] = [[] for _ in range(len(group))]
    for layer, unit_groups in group.unit_groups.items():
        if layer in scores:
            for unit_group, score in zip(unit_groups.tolist(), scores[layer].tolist(), strict=True):
                if unit_group >= 0:
                    members[unit_group].append(score)
    return np.array([BY_NAME[aggregate](np.array(values)) for values in members])
