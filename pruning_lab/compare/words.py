"""Report the statistics in sentences."""

import math

import pandas as pd

from pruning_lab.compare.statistics import ALPHA, Ranking
from pruning_lab.compare.style import style_of
from pruning_lab.tasks.task import Measure


def on_differences(table: pd.DataFrame, what: str, measure: Measure) -> list[str]:
    """Report the pairs that differ significantly, and the difference detectable in the others.

    ``table`` is from ``differences``; ``what`` names the quantity, in units of ``measure``.
    """
    significant = table[table["p_holm"] < ALPHA].sort_values("difference", ascending=False)
    blocks = int(table["pairs"].iloc[0])
    if significant.empty:
        row = table.loc[table["difference"].idxmax()]
        return [
            f"By {what}, no criterion can be told from another on {blocks} blocks. The largest "
            f"difference is {style_of(row['better']).label} over {style_of(row['worse']).label}, "
            f"{_points(row, measure)}, p {p_value(row['p_holm'])} after Holm.",
            _power(table, "A true difference", measure),
        ]
    words = [
        f"By {what}, {len(significant)} of {len(table)} pairs can be told apart on {blocks} "
        "blocks, all pairs taken into account (Holm, 0.05); in brackets 95 % intervals of each "
        "alone:"
    ]
    for better, rows in significant.groupby("better", sort=False):
        beaten = (
            f"than {style_of(row['worse']).label} by {_points(row, measure)}"
            for _, row in rows.iterrows()
        )
        words.append(f"{style_of(better).label} is better {', '.join(beaten)}.")
    rest = table.drop(significant.index)
    if len(rest):
        words.append(_power(rest, "Of the other pairs, a true difference", measure))
    return words


def _power(table: pd.DataFrame, start: str, measure: Measure) -> str:
    known, blocks = table["detectable"].dropna(), int(table["pairs"].iloc[0])
    if known.empty:
        return f"{start} that never varies: what could have been missed is not known."
    if measure.unit == "%" and known.min() >= 1:  # shares do not differ by more
        return (
            f"{blocks} blocks are too few to find any difference of the {measure.label}: "
            "run more seeds."
        )
    ends = dict.fromkeys(map(measure.tenths, (known.min(), known.max())))
    return (
        f"{start} of {_in_units(' to '.join(ends), measure)} would be found in at least four of "
        f"five such studies, if differences vary as on these {blocks} blocks; smaller ones could "
        "well be missed."
    )


def _points(row: pd.Series, measure: Measure) -> str:
    difference = _in_units(measure.number(row["difference"]), measure)
    if math.isnan(row["low"]):
        return f"{difference} (always the same)"
    return f"{difference} ({measure.number(row['low'])} to {measure.number(row['high'])})"


def _in_units(text: str, measure: Measure) -> str:
    return f"{text} {measure.points}".rstrip()


def on_ranking(ranking: Ranking, blocks: str) -> str:
    """Report Friedman's test and the best criterion by Nemenyi's; ``blocks`` names the blocks."""
    start = f"Over {ranking.blocks} {blocks}, Friedman's test "
    if ranking.p >= ALPHA:
        need = f"mean ranks would have to differ by {ranking.critical_difference:.2f}"
        if ranking.critical_difference > len(ranking.ranks) - 1:
            need = "so few could never show one by Nemenyi's test"
        return start + (
            f"finds no difference between the criteria's ranks (p {p_value(ranking.p)}); {need}."
        )
    best = style_of(str(ranking.ranks.index[0])).label
    alike = next((group for group in ranking.alike if group[0] == ranking.ranks.index[0]), [])
    others = ", ".join(style_of(name).label for name in alike[1:])
    verdict = f"but by ranks cannot be told from {others}" if others else "and stands alone"
    return start + (
        f"finds that ranks differ (p {p_value(ranking.p)}): {best} has the best mean rank, "
        f"{ranking.ranks.iloc[0]:.2f}, {verdict} (critical difference "
        f"{ranking.critical_difference:.2f})."
    )


def p_value(value: float) -> str:
    """Return ``= 0.012``, ``< 0.001``, or ``unknown``."""
    if math.isnan(value):
        return "unknown"
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"
