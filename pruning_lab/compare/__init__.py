"""Compare recorded runs: measures, statistics, figures, a report."""

from pruning_lab.compare.agreement import between_criteria, between_scorings
from pruning_lab.compare.best import best_runs
from pruning_lab.compare.curves import quality_curves
from pruning_lab.compare.figures import (
    rank_correlation,
    rank_correlations,
    score_histograms,
    sorted_scores,
    widths,
)
from pruning_lab.compare.measures import measure_runs
from pruning_lab.compare.pages import write_report
from pruning_lab.compare.pairs import by_block, complete, differences
from pruning_lab.compare.report import sections
from pruning_lab.compare.runs import comparable, main_track, told_apart
from pruning_lab.compare.statistics import holm, paired, ranking
from pruning_lab.compare.style import Style, style_of
from pruning_lab.compare.table import markdown, quality_table

__all__ = [
    "Style",
    "best_runs",
    "between_criteria",
    "between_scorings",
    "by_block",
    "comparable",
    "complete",
    "differences",
    "holm",
    "main_track",
    "markdown",
    "measure_runs",
    "paired",
    "quality_curves",
    "quality_table",
    "rank_correlation",
    "rank_correlations",
    "ranking",
    "score_histograms",
    "sections",
    "sorted_scores",
    "style_of",
    "told_apart",
    "widths",
    "write_report",
]
