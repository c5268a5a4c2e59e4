"""Figure of the differences between criteria with their intervals, one row per pair."""

import pandas as pd
from matplotlib.figure import Figure

from pruning_lab.compare.statistics import ALPHA
from pruning_lab.compare.style import bare, style_of
from pruning_lab.tasks.task import Measure


def difference_intervals(table: pd.DataFrame, title: str, measure: Measure) -> Figure:
    """Plot the mean differences in ``table`` (from ``differences``) with their 95 % intervals.

    The largest is on top. Filled points are significant after Holm's correction for all pairs.
    """
    rows = table.sort_values("difference").reset_index(drop=True)
    figure = Figure(figsize=(6.4, 0.27 * len(rows) + 1.2), layout="constrained")
    ax = figure.subplots()
    ax.axvline(0, color="0.2", lw=0.8)
    for place, row in rows.iterrows():
        color = style_of(row["better"]).color
        low, mean, high = (measure.scale * row[key] for key in ("low", "difference", "high"))
        ax.plot((low, high), (place, place), color=color, lw=1.6, gid=f"interval:{place}")
        significant = row["p_holm"] < ALPHA
        ax.plot(mean, place, "o", color=color, mfc=color if significant else "w", ms=5)
    names = [f"{style_of(r.better).label} − {style_of(r.worse).label}" for r in rows.itertuples()]
    ax.set_yticks(range(len(rows)), names, fontsize=8)
    unit = f"Difference in {measure.points}" if measure.points else "Difference"
    ax.set_xlabel(f"{unit}, with its 95 % interval\n(filled: p < 0.05 after Holm)")
    ax.set_ylim(-0.7, len(rows) - 0.3)
    ax.grid(axis="x", color="0.92")
    ax.set_axisbelow(True)
    bare(ax)
    figure.suptitle(title, fontsize="medium")
    return figure
