"""Figures that compare criteria: one look per criterion, data in, a matplotlib figure out."""

from pruning_lab.compare.figures import (
    accuracy_curves,
    rank_correlation,
    rank_correlations,
    score_histograms,
    sorted_scores,
    widths,
)
from pruning_lab.compare.runs import comparable, told_apart
from pruning_lab.compare.style import Style, style_of
from pruning_lab.compare.table import accuracy_table, markdown

__all__ = [
    "Style",
    "accuracy_curves",
    "accuracy_table",
    "comparable",
    "markdown",
    "rank_correlation",
    "rank_correlations",
    "score_histograms",
    "sorted_scores",
    "style_of",
    "told_apart",
    "widths",
]
