"""The verdicts as pictures: quality against cost, and criteria by layers."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from pruning_lab.compare.style import bare, style_of
from pruning_lab.truth.layer import LayerTruth

HARM = "Harm, as a share of that of random orders"

TICKS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1, 1.2, 1.5, 2, 3, 5, 10, 20, 50)


def quality_and_cost(table: pd.DataFrame) -> Figure:
    """``overall``'s table: criteria from least harm to most, and their harm over what they cost.

    Without those whose harm is not known.
    """
    table = table[table["harm"].notna()].reset_index(drop=True)
    figure = Figure(figsize=(11, 0.27 * len(table) + 1.9), layout="constrained")
    if table.empty:
        figure.text(0.5, 0.5, "Random removal does not raise the loss.", ha="center", va="center")
        return figure
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.35], sharey=False)
    _forest(left, table)
    _scatter(right, table)
    return figure


def _forest(ax: Axes, table: pd.DataFrame) -> None:
    for place, row in enumerate(table.itertuples()):
        color = style_of(row.criterion).color
        ax.plot([row.harm_low, row.harm_high], [place, place], color=color, lw=2.2, alpha=0.55)
        ax.plot(row.harm, place, "o", color=color, ms=5)
    ax.axvline(1, color="0.35", lw=0.9, ls=":")
    labels = [style_of(name).label for name in table["criterion"]]
    most = table["layers"].max()
    part = [f"{label} ({n} layers)" if n < most else label
            for label, n in zip(labels, table["layers"], strict=True)]  # fmt: skip
    ax.set_yticks(range(len(table)), part, fontsize=8)
    ax.invert_yaxis()
    _ratios(ax, "x", table[["harm_low", "harm_high"]].to_numpy())
    ax.set_xlabel(f"{HARM}\n(95 % interval over the samples; left is better)", fontsize=8.5)
    ax.tick_params(axis="x", labelsize=8)
    ax.grid(axis="x", color="0.92")
    ax.set_axisbelow(True)
    bare(ax)


def _scatter(ax: Axes, table: pd.DataFrame) -> None:
    seconds = table["seconds"].clip(lower=1e-3)
    for x, row in zip(seconds, table.itertuples(), strict=True):
        ax.plot(x, row.harm, "o", color=style_of(row.criterion).color, ms=5)
    ax.set_xscale("log")
    ax.set_xlim(seconds.min() / 2, seconds.max() * 12)
    ax.axhline(1, color="0.35", lw=0.9, ls=":")
    _ratios(ax, "y", table["harm"].to_numpy())
    _label(ax, seconds.to_numpy(), table)
    ax.set_xlabel("Seconds to score all layers", fontsize=8.5)
    ax.set_ylabel(HARM, fontsize=8.5)
    ax.tick_params(labelsize=8)
    ax.grid(color="0.94")
    ax.set_axisbelow(True)
    bare(ax)


def _ratios(ax: Axes, which: str, values: np.ndarray) -> None:
    """A log scale for shares of chance, where all are above 0."""
    if (values <= 0).any():
        return
    low, high = values.min() / 1.07, values.max() * 1.07
    ticks = [tick for tick in TICKS if low <= tick <= high]
    getattr(ax, f"set_{which}scale")("log")
    getattr(ax, f"set_{which}lim")(low, high)
    getattr(ax, f"set_{which}ticks")(ticks, [f"{tick:g}" for tick in ticks])
    getattr(ax, f"{which}axis").set_minor_locator(NullLocator())


def _label(ax: Axes, seconds: np.ndarray, table: pd.DataFrame) -> None:
    """Names beside the points, moved up or down where they would lie on each other."""
    points = (ax.transData - ax.transAxes).transform(np.column_stack([seconds, table["harm"]]))
    height, labels = 0.032, list[tuple[float, float]]()
    for (x, y), name in sorted(zip(points.tolist(), table["criterion"], strict=True)):
        width = 0.014 * len(name)
        beside = [w for u, w in points if 0 < u - x < width]
        above = [w for u, w in labels if -width < u - x < 1.6 * width]
        places = [y + height * k for k in sorted(range(-14, 15), key=abs)]
        free = (
            place for place in places
            if 0 < place < 1
            and all(abs(place - other) > 0.6 * height for other in beside)
            and all(abs(place - other) >= height for other in above)
        )  # fmt: skip
        at, color = next(free, y), style_of(name).color
        labels.append((x, at))
        ax.annotate(
            style_of(name).label, (x, y), (x + 0.012, at), "axes fraction", "axes fraction",
            fontsize=7, color=color, va="center",
            arrowprops={"arrowstyle": "-", "color": color, "lw": 0.4, "alpha": 0.5},
        )  # fmt: skip


def harm_by_layer(table: pd.DataFrame, order: Sequence[str]) -> Figure:
    """``by_layer``'s table: a cell each criterion (in this order) and layer, on a log scale.

    White is as much harm as random orders do, blue less, red more; grey: the criterion refused, or
    the harm is not known.
    """
    harm = table.pivot(index="criterion", columns="layer", values="harm")
    harm = harm.loc[list(order), list(dict.fromkeys(table["layer"]))]
    shown = np.log2(harm.clip(lower=1e-3).to_numpy(dtype=float))
    reach = max(0.5, float(np.nanquantile(np.abs(shown), 0.95)))
    figure = Figure(
        figsize=(0.62 * harm.shape[1] + 3, 0.27 * len(harm) + 1.7), layout="constrained"
    )
    ax = figure.subplots()
    ax.set_facecolor("0.85")
    image = ax.imshow(shown, cmap="RdBu_r", vmin=-reach, vmax=reach, aspect="auto")
    for (row, column), value in np.ndenumerate(harm.to_numpy(dtype=float)):
        if np.isfinite(value):
            dark = abs(shown[row, column]) > 0.65 * reach
            ax.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=6.5,
                    color="w" if dark else "0.15")  # fmt: skip
    ax.set_yticks(range(len(harm)), [style_of(name).label for name in harm.index], fontsize=8)
    ax.set_xticks(
        range(harm.shape[1]),
        harm.columns,
        rotation=55,
        ha="right",
        rotation_mode="anchor",
        fontsize=7.5,
    )
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=ax, fraction=0.03, pad=0.01)
    ticks = [t for t in (-3, -2, -1, 0, 1, 2, 3) if abs(t) <= reach]
    bar.set_ticks(ticks, labels=[f"{2.0**t:g}" for t in ticks], fontsize=7.5)
    bar.outline.set_visible(False)
    figure.suptitle("Harm beside random orders", fontsize=9)
    return figure


def removal_curves(truths: Sequence[LayerTruth], criteria: Sequence[str]) -> Figure:
    """The mean rise of the loss over the share of units that went, a panel each layer."""
    columns = min(5, len(truths))
    rows = -(-len(truths) // columns)
    figure = Figure(figsize=(2.3 * columns, 1.9 * rows + 0.6), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    lines = {}
    for ax, truth in zip(axes, truths, strict=False):
        share = np.insert(truth.counts, 0, 0) / truth.units
        for name in criteria:
            if name in truth.curves:
                style = style_of(name)
                (lines[style.label],) = ax.plot(
                    share, np.insert(truth.curves[name], 0, 0), color=style.color,
                    ls=style.linestyle, lw=1.1,
                )  # fmt: skip
        (lines["Chance"],) = ax.plot(
            share, np.insert(truth.curves["chance"], 0, 0), color="0.6", lw=2.5, alpha=0.5
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
    figure.supylabel("Rise of the loss", fontsize=8)
    return figure
