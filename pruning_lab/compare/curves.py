"""Accuracy over what was removed, one line a criterion; a pure function, safe in any thread."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pruning_lab.compare.exact import band_factor
from pruning_lab.compare.runs import check_comparable, rows_of, was_finetuned
from pruning_lab.compare.style import bare, in_order, style_of
from pruning_lab.errors import check_choice
from pruning_lab.track import MAIN, STALE, UNTUNED

_QUANTITIES = {"flops": "FLOPs", "parameters": "Parameters", "units": "Units"}
_SPLITS = {"test": "Test", "val": "Validation"}

MANY = 5
"""From so many runs on a band says more than the single runs."""

MUCH = 0.9
"""From this share on the axis is one of the logarithm of what is left."""

TICKS = (0, 50, 75, 90, 95, 98, 99, 99.5)

SPAN = 5.0
"""Smallest height of a panel, in points of accuracy."""

Panel = tuple[str, pd.DataFrame, str]
"""A title, the rows that are drawn, and the column of their accuracy."""


def accuracy_curves(frame: pd.DataFrame, x: str = "flops", split: str = "test") -> Figure:
    """Accuracy (%) over the removed share (%), without and, if there was any, after fine-tuning.

    One line a criterion: the mean over its runs of share and accuracy, at the steps that all of
    them have. Where there are several, the single runs lie thin behind it, or from five on a band:
    the mean's 95 % band, which holds at all steps at once (``band_factor``). Runs of one
    ``block``, where that column is there, count as one, by their mean. *Without* are the runs'
    untuned tracks; where they have none, the left panel is the main track before its fine-tuning.
    Stale tracks, where there are some, come first, in a panel of their own. Where nine tenths or
    more are removed, the axis is logarithmic in what is left, so that cuts that take the same share
    of it are equally wide.

    Args:
        frame: one row per run, track and step, of one model, data set, schedule and fine-tuning;
            columns ``run_id``, ``metric``, ``step``, ``removed_<x>`` and
            ``<split>_accuracy_before`` / ``_after`` (fractions); ``track`` may be left out.
        x: ``"flops"``, ``"parameters"`` or ``"units"``.
        split: ``"test"`` or ``"val"``.

    Raises:
        UserError: for another ``x`` or ``split``, no runs, or runs that cannot share a curve.
    """
    check_choice("x", x, _QUANTITIES)
    check_choice("split", split, _SPLITS)
    check_comparable(frame)
    panels = _panels(frame, split)
    figure = Figure(figsize=(4.2 * len(panels) + 1.8, 3.8), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, (title, rows, column) in zip(axes, panels, strict=True):
        for criterion in in_order(rows["metric"]):
            runs = rows[rows["metric"] == criterion]
            _draw_criterion(ax, criterion, runs, f"removed_{x}", column)
        _widen(ax)
        if frame[f"removed_{x}"].max() >= MUCH:
            _stretch(ax, 100 * frame[f"removed_{x}"].max())
        ax.set_title(title, fontsize="medium")
        ax.set_xlabel(f"{_QUANTITIES[x]} removed (%)")
        ax.grid(color="0.92")
        ax.set_axisbelow(True)
        bare(ax)
    axes[0].set_ylabel(f"{_SPLITS[split]} accuracy (%)")
    figure.legend(
        *axes[-1].get_legend_handles_labels(),
        loc="outside right center",
        frameon=False,
        handlelength=3.2,
    )
    first = frame.iloc[0]
    schedule = first["schedule"].replace("_", " ")
    figure.suptitle(
        f"{first['model']} on {first['dataset']}, {schedule} schedule", fontsize="large"
    )
    return figure


def _panels(frame: pd.DataFrame, split: str) -> list[Panel]:
    before, after = f"{split}_accuracy_before", f"{split}_accuracy_after"
    main, untuned, stale = (rows_of(frame, track) for track in (MAIN, UNTUNED, STALE))
    panels = [("Without fine-tuning", main, before)]
    if not untuned.empty:
        panels = [("Without fine-tuning", untuned, before), ("After fine-tuning", main, after)]
    elif was_finetuned(frame, split):
        panels = [("Before fine-tuning", main, before), ("After fine-tuning", main, after)]
    return [*([] if stale.empty else [("Stale statistics", stale, before)]), *panels]


def _widen(ax: Axes) -> None:
    """Show at least SPAN points: what lies within one or two of them is mostly noise."""
    low, high = ax.get_ylim()
    if high - low < SPAN:
        top = max(high, min((low + high + SPAN) / 2, 100))  # no accuracy is above 100 %
        ax.set_ylim(top - SPAN, top)


def _stretch(ax: Axes, most: float) -> None:
    """Make the axis of what is removed (%) logarithmic in what is left."""
    ax.set_xscale(
        "function",
        functions=(
            lambda gone: -np.log1p(-np.minimum(gone, 99.99) / 100),
            lambda place: -100 * np.expm1(-place),
        ),
    )
    ax.set_xticks([tick for tick in TICKS if tick <= most])
    ax.set_xlim(-6, max(100 - 0.9 * (100 - most), most - 1e-3))


def _draw_criterion(ax: Axes, criterion: str, runs: pd.DataFrame, x: str, y: str) -> None:
    style = style_of(criterion)
    unit = "block" if "block" in runs else "run_id"  # runs of a block share their network
    percent = 100 * runs.groupby([unit, "step"])[[x, y]].mean().dropna()
    by_unit, by_step = percent.groupby(level=unit), percent.groupby(level="step")
    n = by_unit.ngroups
    all_have = by_step.size() == n
    mean = by_step.mean()[all_have]
    if n >= MANY:
        curves = percent[y].unstack("step").loc[:, all_have]
        half = band_factor(curves.to_numpy()) * curves.sem()
        ax.fill_between(
            mean[x], mean[y] - half, mean[y] + half, color=style.color, alpha=0.15, lw=0,
            gid=f"band:{criterion}",
        )  # fmt: skip
    elif n > 1:
        for name, run in by_unit:
            ax.plot(run[x], run[y], color=style.color, lw=0.7, alpha=0.4, gid=f"run:{name}")
    ax.plot(
        mean[x],
        mean[y],
        label=f"{style.label} (n = {n})" if n > 1 else style.label,
        color=style.color,
        marker=style.marker,
        linestyle=style.linestyle,
        lw=1.6,
        ms=5,
        gid=f"mean:{criterion}",
    )
