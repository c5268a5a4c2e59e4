"""What the statistics say, in sentences."""

import math
from typing import Any

import pandas as pd

from pruning_lab.compare.statistics import ALPHA, Ranking
from pruning_lab.compare.style import style_of


def on_differences(table: pd.DataFrame, what: str) -> list[str]:
    """The pairs that can be told apart, or what could have been seen if none can.

    ``table`` is that of ``differences``, in fractions; ``what`` names the measure.
    """
    told = table[table["p_holm"] < ALPHA].sort_values("difference", ascending=False)
    blocks = int(table["pairs"].iloc[0])
    if told.empty:
        row = table.loc[table["difference"].idxmax()]
        return [
            f"By {what}, no criterion can be told from another on {blocks} blocks. The largest "
            f"difference is {_difference(row)}.",
            _power(table, "A true difference"),
        ]
    rest = table.drop(told.index)
    return [
        f"By {what}, {len(told)} of {len(table)} pairs can be told apart on {blocks} blocks, "
        "all pairs taken into account (Holm, 0.05); in brackets 95 % intervals of each alone:",
        *(_beats(name, rows) for name, rows in told.groupby("better", sort=False)),
        *([_power(rest, "Of the other pairs, a true difference")] if len(rest) else []),
    ]


def _power(table: pd.DataFrame, start: str) -> str:
    known = table["detectable"].dropna()
    if known.empty:
        return f"{start} that never varies: what could have been missed is not known."
    if known.min() >= 1:  # accuracies are fractions
        return (
            f"{int(table['pairs'].iloc[0])} blocks are too few to find any difference between "
            "accuracies: run more seeds."
        )
    ends = dict.fromkeys(f"{100 * end:.1f}" for end in (known.min(), known.max()))
    return (
        f"{start} of {' to '.join(ends)} points would be found in at least four of five such "
        f"studies, if differences vary as on these {int(table['pairs'].iloc[0])} blocks; smaller "
        "ones could well be missed."
    )


def _beats(better: str, rows: pd.DataFrame) -> str:
    beaten = (f"than {style_of(row.worse).label} by {_points(row)}" for row in rows.itertuples())
    return f"{style_of(better).label} keeps more {', '.join(beaten)}."


def _points(row: Any) -> str:
    if math.isnan(row.low):
        return f"{100 * row.difference:.2f} points (always the same)"
    return f"{100 * row.difference:.2f} points ({100 * row.low:.2f} to {100 * row.high:.2f})"


def _difference(row: pd.Series) -> str:
    better, worse = style_of(row["better"]).label, style_of(row["worse"]).label
    return f"{better} over {worse}, {_points(row)}, p {p_value(row.p_holm)} after Holm"


def on_ranking(ranking: Ranking, blocks: str) -> str:
    """Friedman's test and who is alike by Nemenyi's. ``blocks`` says what a block is."""
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
    """``= 0.012``, ``< 0.001``, or ``unknown``."""
    if math.isnan(value):
        return "unknown"
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"
