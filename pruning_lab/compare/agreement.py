"""Measure how well two scorings of the same units agree on their order."""

from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import stats

from pruning_lab.attributions.estimation.scores import LayerScores, Scores
from pruning_lab.compare.style import in_order
from pruning_lab.errors import UserError

LOWEST = 0.3
"""Share of the units, those with the lowest scores, whose overlap is measured."""


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Return Spearman's rank correlation; NaN if a side is constant or has fewer than 3 units."""
    return _correlation(stats.spearmanr, one, other)


def spearman_of_rows(one: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return ``spearman`` of ``one`` (units,) with each row of ``rows`` (rows, units)."""
    if len(one) < 3:
        return np.full(len(rows), np.nan)
    ranks, row_ranks = (stats.rankdata(scores, axis=-1) for scores in (one, rows))
    ranks, row_ranks = ranks - ranks.mean(), row_ranks - row_ranks.mean(1, keepdims=True)
    norms = np.sqrt((ranks @ ranks) * (row_ranks * row_ranks).sum(1))
    return np.divide(row_ranks @ ranks, norms, out=np.full(len(rows), np.nan), where=norms > 0)


def kendall(one: np.ndarray, other: np.ndarray) -> float:
    """Return Kendall's tau-b, which takes ties into account; NaN as for ``spearman``."""
    return _correlation(stats.kendalltau, one, other)


def _correlation(
    of: Callable[..., tuple[float, float]], one: np.ndarray, other: np.ndarray
) -> float:
    if len(one) < 3 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return float("nan")
    return float(of(one, other)[0])


def overlap(one: np.ndarray, other: np.ndarray, lowest: float = LOWEST) -> float:
    """Return the share of the lowest-scored units of one side that are lowest on the other too.

    ``lowest`` is the share of units that count as lowest; the overlap expected by chance is about
    the same. Of tied units the first count as lower, as in a plan.
    """
    count = _count(len(one), lowest)
    sets = (set(np.argsort(scores, kind="stable")[:count].tolist()) for scores in (one, other))
    return len(set.intersection(*sets)) / count


MEASURES = {"spearman": spearman, "kendall": kendall, "overlap": overlap}
COLUMNS = [*MEASURES, "chance"]
"""Measures of agreement, and the overlap expected by chance."""


def between_criteria(scores: Scores) -> pd.DataFrame:
    """Compare every pair of criteria in every layer: ``one other layer units`` and COLUMNS.

    ``scores`` holds by criterion and layer one number per unit.
    """
    rows = [
        (one, other, layer, *_measured(scores[one][layer], scores[other][layer]))
        for one, other in combinations(in_order(scores), 2)
        for layer in scores[one]
        if layer in scores[other]
    ]
    return pd.DataFrame(rows, columns=["one", "other", "layer", "units", *COLUMNS])


def between_scorings(scorings: Sequence[LayerScores]) -> pd.DataFrame:
    """Compare every pair of scorings of a network by one criterion: ``layer units`` and COLUMNS.

    ``scorings`` hold one number per unit by layer; they may differ in the seed or in the samples.
    Raises UserError if their layers differ.
    """
    rows = []
    for one, other in combinations(scorings, 2):
        if {k: len(v) for k, v in one.items()} != {k: len(v) for k, v in other.items()}:
            raise UserError("The scorings are of different layers, or of different widths.")
        rows += [(layer, *_measured(one[layer], other[layer])) for layer in one]
    return pd.DataFrame(rows, columns=["layer", "units", *COLUMNS])


def _measured(one: np.ndarray, other: np.ndarray) -> tuple[float, ...]:
    agreements = (measure(one, other) for measure in MEASURES.values())
    return (len(one), *agreements, _count(len(one), LOWEST) / len(one))


def _count(units: int, lowest: float) -> int:
    return max(1, round(lowest * units))
