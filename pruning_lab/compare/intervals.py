"""Differences between criteria with their intervals, one row a pair."""

import pandas as pd
from matplotlib.figure import Figure

from pruning_lab.compare.statistics import ALPHA
from pruning_lab.compare.style import bare, style_of


def difference_intervals(table: pd.DataFrame, title: str) -> Figure:
    """The mean differences of ``differences`` in points, largest first, with 95 % intervals.

    Filled are those that remain significant when all pairs are taken into account (Holm, 0.05).
    """
    rows = table.sort_values("difference").reset_index(drop=True)
    figure = Figure(figsize=(6.4, 0.27 * len(rows) + 1.2), layout="constrained")
    ax = figure.subplots()
    ax.axvline(0, color="0.2", lw=0.8)
    for place, row in rows.iterrows():
        color = style_of(row["better"]).color
        low, mean, high = (100 * row[key] for key in ("low", "difference", "high"))
        ax.plot((low, high), (place, place), color=color, lw=1.6, gid=f"interval:{place}")
        told = row["p_holm"] < ALPHA
        ax.plot(mean, place, "o", color=color, mfc=color if told else "w", ms=5)
    names = [f"{style_of(r.better).label} − {style_of(r.worse).label}" for r in rows.itertuples()]
    ax.set_yticks(range(len(rows)), names, fontsize=8)
    ax.set_xlabel("Difference in points, with its 95 % interval\n(filled: p < 0.05 after Holm)")
    ax.set_ylim(-0.7, len(rows) - 0.3)
    ax.grid(axis="x", color="0.92")
    ax.set_axisbelow(True)
    bare(ax)
    figure.suptitle(title, fontsize="medium")
    return figure
