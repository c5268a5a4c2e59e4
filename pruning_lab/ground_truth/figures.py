"""Figures: quality against cost, quantiles by layer, harm by share of units removed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pruning_lab.compare.style import bare, style_of
from pruning_lab.ground_truth.layer import LayerTruth
from pruning_lab.ground_truth.tables import RANDOM

QUANTILE = "Share of random orders that do less harm"
BAND = "0.9"
"""The grey of the range of random orders."""


def quality_and_cost(table: pd.DataFrame, measure: str) -> Figure:
    """Draw the table of ``overall`` or ``over_networks``.

    ``measure`` is the label of the task's primary measure. Left: the quantile of each criterion
    with its interval, least harm first. Right: what the measure loses relative to random orders,
    against the seconds of scoring. Grey: 95 % of the random orders.
    """
    random = table[table["criterion"] == RANDOM].iloc[0]
    table = table[table["criterion"] != RANDOM].reset_index(drop=True)
    figure = Figure(figsize=(11, 0.27 * max(6, len(table)) + 1.9), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.35])
    _forest(left, table, random)
    _scatter(right, table, random, measure)
    return figure


def _forest(ax: Axes, table: pd.DataFrame, random: pd.Series) -> None:
    ax.axvspan(random["quantile_low"], random["quantile_high"], color=BAND, lw=0)
    for place, row in enumerate(table.itertuples()):
        color, ends = style_of(row.criterion).color, [row.quantile_low, row.quantile_high]
        ax.plot(ends, [place, place], color=color, lw=2.2, alpha=0.55)
        ax.plot(row.quantile, place, "o", color=color, ms=5)
    ax.axvline(0.5, color="0.35", lw=0.9, ls=":")
    labels, most = [style_of(name).label for name in table["criterion"]], table["layers"].max()
    part = [f"{label} ({n:g} layers)" if n < most else label
            for label, n in zip(labels, table["layers"], strict=True)]  # fmt: skip
    ax.set_yticks(range(len(table)), part, fontsize=8)
    ax.invert_yaxis()
    ax.set_xlim(0, 1)
    of = "networks" if "networks" in table else "layers"
    ax.set_xlabel(f"{QUANTILE}\n(95 % interval over {of}; left is better)", fontsize=8.5)
    _finish(ax, "x")


def _scatter(ax: Axes, table: pd.DataFrame, random: pd.Series, measure: str) -> None:
    seconds = table["seconds"].clip(lower=1e-3)
    ax.axhspan(random["points_vs_random_low"], random["points_vs_random_high"], color=BAND, lw=0)
    for x, row in zip(seconds, table.itertuples(), strict=True):
        ax.plot(x, row.points_vs_random, "o", color=style_of(row.criterion).color, ms=5)
    ax.set_xscale("log")
    ax.set_xlim(seconds.min() / 2, seconds.max() * 12)
    ax.axhline(0, color="0.35", lw=0.9, ls=":")
    values = [*table["points_vs_random"],
              *random[["points_vs_random_low", "points_vs_random_high"]]]  # fmt: skip
    margin = 0.08 * max(1e-3, np.nanmax(values) - np.nanmin(values))
    ax.set_ylim(np.nanmin(values) - margin, np.nanmax(values) + margin)  # before labels are placed
    _label(ax, seconds.to_numpy(), table)
    ax.set_xlabel("Seconds to score all layers", fontsize=8.5)
    lost = f"{_lost(measure)} beside random orders, points (lower is better)"
    ax.set_ylabel(lost, fontsize=8.5)
    _finish(ax, "both")


def _finish(ax: Axes, grid: Literal["both", "x"]) -> None:
    ax.tick_params(labelsize=8)
    ax.grid(axis=grid, color="0.94")
    ax.set_axisbelow(True)
    bare(ax)


def _label(ax: Axes, seconds: np.ndarray, table: pd.DataFrame) -> None:
    """Write names beside the points, moved up or down where they would overlap."""
    values = np.column_stack([seconds, table["points_vs_random"]])
    points = (ax.transData - ax.transAxes).transform(values)
    height, labels = 0.032, list[tuple[float, float]]()
    for (x, y), name in sorted(zip(points.tolist(), table["criterion"], strict=True)):
        width = 0.014 * len(name)
        beside = [w for u, w in points if 0 < u - x < width]
        above = [w for u, w in labels if -width < u - x < 1.6 * width]
        places = [y + height * k for k in sorted(range(-14, 15), key=abs)]
        free = (
            place for place in places
            if 0 < place < 1
            and all(abs(place - point) > 0.6 * height for point in beside)
            and all(abs(place - label) >= height for label in above)
        )  # fmt: skip
        at, color = next(free, y), style_of(name).color
        labels.append((x, at))
        ax.annotate(
            style_of(name).label, (x, y), (x + 0.012, at), "axes fraction", "axes fraction",
            fontsize=7, color=color, va="center",
            arrowprops={"arrowstyle": "-", "color": color, "lw": 0.4, "alpha": 0.5},
        )  # fmt: skip


def harm_by_layer(layers: pd.DataFrame, order: Sequence[str], measure: str) -> Figure:
    """Draw the table ``by_layer``: a cell for each criterion (in this order) and layer.

    The colour is the quantile: blue where a criterion does less harm than most random orders, red
    where it does more. The number is what the ``measure`` loses relative to random orders, in
    points. The first row is what random orders lose. Grey: the criterion refused the layer.
    """
    columns = list(dict.fromkeys(layers["layer"]))
    random = layers[layers["criterion"] == RANDOM].groupby("layer")["points"].mean()[columns]
    names = [name for name in order if name != RANDOM]
    rows = layers[layers["order"].isna()]
    colour, text = (
        rows.pivot(index="criterion", columns="layer", values=key).loc[names, columns].to_numpy()
        for key in ("quantile", "points_vs_random")
    )
    size = 0.62 * len(columns) + 3, 0.27 * (len(names) + 1) + 1.7
    figure = Figure(figsize=size, layout="constrained")
    ax = figure.subplots()
    ax.set_facecolor("0.85")
    shown = np.vstack([np.full(len(columns), np.nan), colour])
    image = ax.imshow(shown, cmap="RdBu_r", vmin=0, vmax=1, aspect="auto")
    for column, value in enumerate(random):
        ax.text(column, 0, f"{value:.1f}", ha="center", va="center", fontsize=6.5)
    for (row, column), value in np.ndenumerate(text):
        if np.isfinite(value):
            dark = abs(colour[row, column] - 0.5) > 0.33
            ax.text(column, row + 1, f"{value:+.1f}", ha="center", va="center", fontsize=6.5,
                    color="w" if dark else "0.15")  # fmt: skip
    labels = ["Random orders lose", *(style_of(name).label for name in names)]
    ax.set_yticks(range(len(labels)), labels, fontsize=8)
    ax.set_xticks(range(len(columns)), columns, rotation=55, ha="right",
                  rotation_mode="anchor", fontsize=7.5)  # fmt: skip
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=ax, fraction=0.03, pad=0.01)
    bar.set_label(QUANTILE, fontsize=7.5)
    bar.ax.tick_params(labelsize=7.5)
    bar.outline.set_visible(False)
    figure.suptitle(f"Points of {measure} lost beside random orders", fontsize=9)
    return figure


def removal_curves(truths: Sequence[LayerTruth], criteria: Sequence[str], measure: str) -> Figure:
    """Draw what the ``measure`` loses over the share of units removed, a panel for each layer.

    Grey: the middle 90 % of the random orders, and their mean.
    """
    columns = min(5, len(truths))
    rows = -(-len(truths) // columns)
    figure = Figure(figsize=(2.3 * columns, 1.9 * rows + 0.6), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    lines = {}
    for ax, truth in zip(axes, truths, strict=False):
        share = truth.counts / truth.units
        random = np.stack([curve.points for curve in truth.random])
        ax.fill_between(share, *np.quantile(random, [0.05, 0.95], axis=0), color=BAND, lw=0)
        (lines["Random orders"],) = ax.plot(share, random.mean(0), color="0.6", lw=2.5, alpha=0.6)
        for name in criteria:
            if name in truth.forward:
                style = style_of(name)
                (lines[style.label],) = ax.plot(
                    share, truth.forward[name].points, color=style.color, ls=style.linestyle, lw=1.1
                )
        ax.set_title(truth.layer, fontsize=7.5)
        ax.tick_params(labelsize=6.5)
        bare(ax)
    for ax in axes[len(truths) :]:
        ax.set_axis_off()
    figure.legend(
        lines.values(), lines.keys(), loc="outside upper center", ncols=6, fontsize=7, frameon=False
    )
    figure.supxlabel("Share of the layer's units removed, lowest score first", fontsize=8)
    figure.supylabel(f"{_lost(measure)}, points", fontsize=8)
    return figure


def write_files(
    folder: Path, figures: Mapping[str, Figure], texts: Mapping[str, str]
) -> list[Path]:
    """Write figures as PNG, and text files, to ``folder``; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=150, metadata={"Software": None})
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [*(folder / f"{name}.png" for name in figures), *(folder / name for name in texts)]


def _lost(measure: str) -> str:
    return f"{measure[0].upper()}{measure[1:]} lost"
