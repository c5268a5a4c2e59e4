"""Compare recorded runs: measures, statistics, figures, a report."""

from pruning_lab.compare.agreement import between_criteria, between_scorings
from pruning_lab.compare.best import best_runs
from pruning_lab.compare.curves import quality_curves
from pruning_lab.compare.figures import rank_correlation, score_histograms, sorted_scores, widths
from pruning_lab.compare.measures import measure_runs, quality_table
from pruning_lab.compare.pages import markdown, write_report
from pruning_lab.compare.report import sections
from pruning_lab.compare.runs import comparable, main_track
from pruning_lab.compare.statistics import holm
from pruning_lab.compare.style import style_of

__all__ = [
    "best_runs",
    "between_criteria",
    "between_scorings",
    "comparable",
    "holm",
    "main_track",
    "markdown",
    "measure_runs",
    "quality_curves",
    "quality_table",
    "rank_correlation",
    "score_histograms",
    "sections",
    "sorted_scores",
    "style_of",
    "widths",
    "write_report",
]
