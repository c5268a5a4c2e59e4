"""Plot the primary measure over the share removed, one line per criterion; thread-safe."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pruning_lab.compare.runs import check_comparable, measure_of, rows_of, was_finetuned
from pruning_lab.compare.statistics import band_factor
from pruning_lab.compare.style import bare, in_order, style_of
from pruning_lab.errors import check_choice
from pruning_lab.records.step import MAIN, STALE, UNTUNED

_QUANTITIES = {"flops": "FLOPs", "parameters": "Parameters", "units": "Units"}
_SPLITS = {"test": "Test", "val": "Validation"}

MANY = 5
"""Number of runs from which a band is drawn instead of the single runs."""

MUCH = 0.9
"""Removed share from which the axis is logarithmic in the remaining share."""

TICKS = (0, 50, 75, 90, 95, 98, 99, 99.5)

SPAN = 5.0
"""Smallest height of a panel in points, if the measure is in per cent."""

Panel = tuple[str, pd.DataFrame, str]
"""Title, rows to draw, and column of their measure."""


def quality_curves(frame: pd.DataFrame, x: str = "flops", split: str = "test") -> Figure:
    """Plot the primary measure over the removed share (%), without and after fine-tuning.

    ``frame`` has one row per run, track and step, of one model, data set, schedule and fine-tuning,
    with columns ``run_id``, ``metric``, ``step``, ``removed_<x>`` and ``<split>_<measure>_before``
    / ``_after``. Without ``track`` all rows are the main track, without ``measure``,
    ``measure_unit`` and ``measure_better`` the measure is classification's. ``x`` is ``"flops"``,
    ``"parameters"`` or ``"units"``, ``split`` is ``"test"`` or ``"val"``. Raises UserError for
    others, no runs, or runs that cannot share a curve.

    One line per criterion: the mean over its runs of share and measure, at the steps that all of
    them have. Several runs are drawn as thin lines, five or more as a band: the mean's 95 % band,
    which holds at all steps at once (``band_factor``). If there is a column ``block``, the runs of
    a block count as one, by their mean. The panel *without* shows the runs' untuned tracks; if
    there are none, it shows the main track before fine-tuning. Stale tracks, if any, have a panel
    of their own on the left. If nine tenths or more are removed, the axis is logarithmic in the
    remaining share, so that steps that remove equal shares of it are equally wide.
    """
    check_choice("x", x, _QUANTITIES)
    check_choice("split", split, _SPLITS)
    check_comparable(frame)
    measure, most = measure_of(frame), frame[f"removed_{x}"].max()
    panels = _panels(frame, split, measure.name)
    figure = Figure(figsize=(4.2 * len(panels) + 1.8, 3.8), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, (title, rows, column) in zip(axes, panels, strict=True):
        for criterion in in_order(rows["metric"]):
            runs = rows[rows["metric"] == criterion]
            _draw_criterion(ax, criterion, runs, f"removed_{x}", column, measure.scale)
        if measure.unit == "%":
            _widen(ax)
        if most >= MUCH:
            _stretch(ax, 100 * most)
        ax.set_title(title, fontsize="medium")
        ax.set_xlabel(f"{_QUANTITIES[x]} removed (%)")
        ax.grid(color="0.92")
        ax.set_axisbelow(True)
        bare(ax)
    axes[0].set_ylabel(f"{_SPLITS[split]} {measure.axis}")
    lines, labels = axes[-1].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside right center", frameon=False, handlelength=3.2)
    model, dataset, schedule = frame.iloc[0][["model", "dataset", "schedule"]]
    title = f"{model} on {dataset}, {schedule.replace('_', ' ')} schedule"
    figure.suptitle(title, fontsize="large")
    return figure


def _panels(frame: pd.DataFrame, split: str, measure: str) -> list[Panel]:
    before, after = f"{split}_{measure}_before", f"{split}_{measure}_after"
    main, untuned, stale = (rows_of(frame, track) for track in (MAIN, UNTUNED, STALE))
    panels = [("Without fine-tuning", main, before)]
    if not untuned.empty:
        panels = [("Without fine-tuning", untuned, before), ("After fine-tuning", main, after)]
    elif was_finetuned(frame, split):
        panels = [("Before fine-tuning", main, before), ("After fine-tuning", main, after)]
    return [*([] if stale.empty else [("Stale statistics", stale, before)]), *panels]


def _widen(ax: Axes) -> None:
    """Show at least SPAN points: differences of one or two points are mostly noise."""
    low, high = ax.get_ylim()
    if high - low < SPAN:
        top = max(high, min((low + high + SPAN) / 2, 100))  # no share is above 100 %
        ax.set_ylim(top - SPAN, top)


def _stretch(ax: Axes, most: float) -> None:
    """Make the axis of the removed share (%) logarithmic in the remaining share."""
    ax.set_xscale(
        "function",
        functions=(
            lambda removed: -np.log1p(-np.minimum(removed, 99.99) / 100),
            lambda place: -100 * np.expm1(-place),
        ),
    )
    ax.set_xticks([tick for tick in TICKS if tick <= most])
    ax.set_xlim(-6, max(100 - 0.9 * (100 - most), most - 1e-3))


def _draw_criterion(
    ax: Axes, criterion: str, runs: pd.DataFrame, x: str, y: str, scale: float
) -> None:
    style = style_of(criterion)
    unit = "block" if "block" in runs else "run_id"  # runs of a block share their network
    points = runs.groupby([unit, "step"])[[x, y]].mean().dropna() * [100, scale]
    by_unit, by_step = points.groupby(level=unit), points.groupby(level="step")
    n = by_unit.ngroups
    all_have = by_step.size() == n
    mean = by_step.mean()[all_have]
    if n >= MANY:
        curves = points[y].unstack("step").loc[:, all_have]
        half = band_factor(curves.to_numpy()) * curves.sem()
        ax.fill_between(
            mean[x], mean[y] - half, mean[y] + half, color=style.color, alpha=0.15, lw=0,
            gid=f"band:{criterion}",
        )  # fmt: skip
    elif n > 1:
        for name, run in by_unit:
            ax.plot(run[x], run[y], color=style.color, lw=0.7, alpha=0.4, gid=f"run:{name}")
    ax.plot(
        mean[x], mean[y], label=f"{style.label} (n = {n})" if n > 1 else style.label,
        color=style.color, marker=style.marker, linestyle=style.linestyle, lw=1.6, ms=5,
        gid=f"mean:{criterion}",
    )  # fmt: skip
