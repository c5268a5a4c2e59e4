"""How far two scorings of the same units agree about their order."""

from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import stats

from pruning_lab.attributions.scores import LayerScores, Scores
from pruning_lab.compare.style import in_order
from pruning_lab.errors import UserError

LOWEST = 0.3
"""The share of units with the lowest scores whose overlap is measured."""


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's rank correlation; NaN where one side is constant or there are fewer than 3."""
    return _correlation(stats.spearmanr, one, other)


def spearman_of_rows(one: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """``spearman`` of one side (units,) with each row of (rows, units), in one go."""
    if len(one) < 3:
        return np.full(len(rows), np.nan)
    own, others = (stats.rankdata(each, axis=-1) for each in (one, rows))
    own, others = own - own.mean(), others - others.mean(1, keepdims=True)
    lengths = np.sqrt((own @ own) * (others * others).sum(1))
    return np.divide(others @ own, lengths, out=np.full(len(rows), np.nan), where=lengths > 0)


def kendall(one: np.ndarray, other: np.ndarray) -> float:
    """Kendall's tau-b, which takes ties into account; NaN as for ``spearman``."""
    return _correlation(stats.kendalltau, one, other)


def _correlation(
    of: Callable[..., tuple[float, float]], one: np.ndarray, other: np.ndarray
) -> float:
    if len(one) < 3 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return float("nan")
    return float(of(one, other)[0])


def overlap(one: np.ndarray, other: np.ndarray, lowest: float = LOWEST) -> float:
    """The share of the units of ``lowest`` scores on one side that are among them on the other.

    By chance it is about ``lowest`` itself. Of tied units the first count as lower, as in a plan.
    """
    count = _count(len(one), lowest)
    sets = (set(np.argsort(each, kind="stable")[:count].tolist()) for each in (one, other))
    return len(set.intersection(*sets)) / count


MEASURES = {"spearman": spearman, "kendall": kendall, "overlap": overlap}
COLUMNS = [*MEASURES, "chance"]
"""Measures of agreement, and what the overlap is by chance."""


def between_criteria(scores: Scores) -> pd.DataFrame:
    """Every pair of criteria in every layer: ``one other layer units`` and COLUMNS."""
    rows = [
        (one, other, layer, *_measured(scores[one][layer], scores[other][layer]))
        for one, other in combinations(in_order(scores), 2)
        for layer in scores[one]
        if layer in scores[other]
    ]
    return pd.DataFrame(rows, columns=["one", "other", "layer", "units", *COLUMNS])


def between_scorings(scorings: Sequence[LayerScores]) -> pd.DataFrame:
    """Every pair of scorings by one criterion, of the same network: ``layer units`` and COLUMNS.

    Scorings may differ in the seed or in the samples. Raises UserError where the layers differ.
    """
    rows = []
    for one, other in combinations(scorings, 2):
        if {k: len(v) for k, v in one.items()} != {k: len(v) for k, v in other.items()}:
            raise UserError("The scorings are of different layers, or of different widths.")
        rows += [(layer, *_measured(one[layer], other[layer])) for layer in one]
    return pd.DataFrame(rows, columns=["layer", "units", *COLUMNS])


def _measured(one: np.ndarray, other: np.ndarray) -> tuple[float, ...]:
    found = (measure(one, other) for measure in MEASURES.values())
    return (len(one), *found, _count(len(one), LOWEST) / len(one))


def _count(units: int, lowest: float) -> int:
    return max(1, round(lowest * units))
