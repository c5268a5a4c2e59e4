"""Plot scores, widths, differences and ranks, without global state (thread-safe)."""

from collections.abc import Mapping

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from pruning_lab.attributions.estimation.reduction import Estimate
from pruning_lab.attributions.estimation.scores import LayerEstimates, Scores
from pruning_lab.compare.statistics import ALPHA, Ranking
from pruning_lab.compare.style import bare, in_order, style_of
from pruning_lab.errors import UserError
from pruning_lab.tasks.task import Measure

_BINS = 24


def score_histograms(scores: Scores, title: str = "Scores of the units") -> Figure:
    """Plot histograms of the scores under a ``title``: a row per layer, a column per criterion.

    ``scores`` holds by criterion and layer one number per unit, (units,). With one criterion the
    layers wrap into a compact grid. Each panel has its own scales, from the 1st to the 99.5th
    percentile; units beyond are counted in the outermost bars, so that the bars sum to the number
    of units. A thin line marks 0 if there are negative scores. Raises UserError if there is nothing
    to draw or a score is not finite.
    """
    criteria = in_order(scores)
    layers = list(dict.fromkeys(layer for criterion in criteria for layer in scores[criterion]))
    if not layers:
        raise UserError("there are no scores to draw")
    if len(criteria) == 1:
        (criterion,) = criteria
        figure, axes = _panels({layer: len(scores[criterion][layer]) for layer in layers}, 1.25)
        for ax, layer in zip(axes, layers, strict=True):
            _draw_histogram(ax, criterion, layer, scores[criterion][layer])
        title = f"{title}: {style_of(criterion).label}"
    else:
        figure = _histogram_grid(scores, criteria, layers)
    figure.suptitle(title, fontsize="large")
    figure.supxlabel(
        "Height: number of units.\nOutermost bars: all units beyond the 1st and 99.5th percentile.",
        fontsize="small",
        color="0.35",
    )
    return figure


def _panels(units: Mapping[str, int], height: float) -> tuple[Figure, list[Axes]]:
    """Return a compact grid with a panel per layer, ``height`` inches each."""
    columns = min(5, len(units))
    rows = -(-len(units) // columns)
    figure = Figure(figsize=(max(2.1 * columns, 5), height * rows + 0.7), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax, (layer, count) in zip(axes, units.items(), strict=False):
        ax.set_title(f"{layer}  ({count} units)", fontsize=8, pad=3)
    for ax in axes[len(units) :]:
        ax.set_axis_off()
    return figure, list(axes[: len(units)])


def sorted_scores(
    criterion: str, estimates: LayerEstimates, title: str = "Scores of the units"
) -> Figure:
    """Plot the scores of each layer in ascending order, with 95 % intervals of units as bands.

    ``estimates`` are the scores of the ``criterion`` by layer; the label of the criterion follows
    the ``title``. The dark band is the error of the criterion's own draws for these samples; the
    light band also includes the error from the choice of the samples. Raises UserError if there is
    nothing to draw.
    """
    if not estimates:
        raise UserError("there are no scores to draw")
    units = {layer: len(estimate.scores) for layer, estimate in estimates.items()}
    figure, axes = _panels(units, 1.5)
    for ax, estimate in zip(axes, estimates.values(), strict=True):
        _draw_sorted(ax, style_of(criterion).color, estimate)
    figure.suptitle(f"{title}: {style_of(criterion).label}", fontsize="large")
    bands = "95 % intervals that include the choice of the samples."
    if any(estimate.sampling_error is not None for estimate in estimates.values()):
        bands = "95 % intervals, dark for the draws,\nlight for the choice of the samples as well."
    figure.supxlabel(f"Units in ascending order. Bands: {bands}", fontsize="small", color="0.35")
    return figure


def _draw_sorted(ax: Axes, color: str, estimate: Estimate) -> None:
    order = np.argsort(estimate.scores, kind="stable")
    scores, rank = estimate.scores[order], np.arange(len(order))
    for error, alpha in (("error", 0.25), ("sampling_error", 0.5)):
        if getattr(estimate, error) is not None:
            low, high = (bound[order] for bound in estimate.interval(error))
            ax.fill_between(rank, low, high, color=color, alpha=alpha, lw=0)
    ax.plot(rank, scores, color=color, lw=1)
    if scores[0] < 0:
        ax.axhline(0, color="0.2", lw=0.7)
    ax.margins(x=0.01)
    ax.set_xticks([])
    ax.tick_params(labelsize=7, length=2, pad=1)
    bare(ax)


def _histogram_grid(scores: Scores, criteria: list[str], layers: list[str]) -> Figure:
    size = (1.7 * len(criteria) + 1.2, 0.8 * len(layers) + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(layers), len(criteria), squeeze=False)
    for row, layer in zip(axes, layers, strict=True):
        for ax, criterion in zip(row, criteria, strict=True):
            if layer in scores[criterion]:
                _draw_histogram(ax, criterion, layer, scores[criterion][layer])
            else:
                ax.set_axis_off()
        units = next(len(scores[name][layer]) for name in criteria if layer in scores[name])
        row[0].set_ylabel(
            f"{layer}\n{units} units", rotation=0, ha="right", va="center", fontsize=8
        )
    for ax, criterion in zip(axes[0], criteria, strict=True):
        ax.set_title(style_of(criterion).label, fontsize=9)
    return figure


def _draw_histogram(ax: Axes, criterion: str, layer: str, values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise UserError(f"the {criterion} scores of layer {layer} are not all finite")
    low, high = np.percentile(values, [1, 99.5])
    if values.min() < 0:
        low, high = min(low, 0.0), max(high, 0.0)
        ax.axvline(0, color="0.2", lw=0.7, gid="zero")
    constant = np.isclose(low, high, rtol=1e-9, atol=np.finfo(float).tiny)
    margin = (abs(low) / 2 or 0.5) if constant else 0.0  # room for the bar of a constant
    edges = (low - margin, high + margin)
    counts, bins = np.histogram(np.clip(values, low, high), bins=_BINS, range=edges)
    ax.stairs(counts, bins, fill=True, color=style_of(criterion).color)
    ax.margins(x=0.02)
    ax.set_yticks([])
    bare(ax, "top", "right", "left")
    ticks = [low] if constant else [low, high]
    ax.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks], fontsize=7)
    ax.tick_params(length=2, pad=1)
    if not constant:
        first, last = ax.get_xticklabels()
        first.set_horizontalalignment("left")
        last.set_horizontalalignment("right")


def rank_correlations(scores: Scores) -> pd.DataFrame:
    """Return the table of ``rank_correlation``."""
    criteria = in_order(scores)
    by_layer = [pd.DataFrame(np.nan, index=criteria, columns=criteria)]
    for layer in dict.fromkeys(layer for criterion in criteria for layer in scores[criterion]):
        units = {name: scores[name][layer] for name in criteria if layer in scores[name]}
        table = pd.DataFrame(units).corr(method="spearman", min_periods=3)
        by_layer.append(table.reindex(criteria, columns=criteria))
    return pd.concat(by_layer).groupby(level=0, sort=False).mean()


def rank_correlation(scores: Scores) -> tuple[pd.DataFrame, Figure]:
    """Return Spearman's correlation between criteria, averaged over the layers, and its heat map.

    ``scores`` holds by criterion and layer one number per unit. Layers of fewer than 3 units are
    left out, and those in which one of the two criteria is constant; NaN if no layer remains.
    """
    table = rank_correlations(scores)
    return table, correlation_map(table, "Spearman's ρ (mean over layers)")


def correlation_map(table: pd.DataFrame, label: str) -> Figure:
    """Plot a square table of correlations between criteria as colours and numbers."""
    labels = [style_of(criterion).label for criterion in table.index]
    side = 0.62 * len(labels) + 1.9
    figure = Figure(figsize=(side + 0.9, side), layout="constrained")
    ax = figure.subplots()
    numbers = table.map("{:.2f}".format).where(table.notna(), "–").to_numpy()
    image = _heat_map(ax, table.to_numpy(), "RdBu_r", (-1, 1), numbers)
    ax.set_xticks(range(len(labels)), labels, rotation=35, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(labels)), labels)
    figure.colorbar(image, ax=ax, label=label, shrink=0.8)
    ax.set_title("Rank correlation of the criteria", fontsize="medium")
    return figure


def widths(units: pd.DataFrame) -> Figure:
    """Plot the remaining units of each layer after each step, as shares (colours) and numbers.

    ``units`` are the numbers: a column per layer, a row per step, the unpruned model first. Its
    index is the step (integers) or the removed share of FLOPs (fractions).
    """
    shares = units / units.iloc[0]
    rows, columns = units.shape[1], len(units)
    figure = Figure(figsize=(0.55 * columns + 3.2, 0.3 * rows + 1.6), layout="constrained")
    ax = figure.subplots()
    numbers = units.T.to_numpy().astype(int)  # a frame read back may hold floats
    image = _heat_map(ax, 100 * shares.T.to_numpy(), "Blues", (0, 100), numbers)
    ax.set_yticks(range(rows), [str(layer) for layer in units.columns])
    removed = pd.api.types.is_float_dtype(units.index)
    steps = [f"{100 * step:.0f}" if removed else str(step) for step in units.index]
    ax.set_xticks(range(columns), steps)
    ax.set_xlabel("FLOPs removed (%)" if removed else "Step")
    ax.set_title("Units left in each layer", fontsize="medium")
    figure.colorbar(image, ax=ax, label="Units kept (%)")
    return figure


def _heat_map(
    ax: Axes, values: np.ndarray, colors: str, limits: tuple[float, float], numbers: np.ndarray
) -> AxesImage:
    """Draw ``values`` as colours, with ``numbers`` on them in black or white, to be legible."""
    cmap = matplotlib.colormaps[colors].with_extremes(bad="0.9")
    image = ax.imshow(values, cmap=cmap, vmin=limits[0], vmax=limits[1], aspect="auto")
    for (row, column), number in np.ndenumerate(numbers):
        red, green, blue, _ = image.to_rgba(values[row, column])
        dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
        ax.text(column, row, number, ha="center", va="center", color="w" if dark else "k")
    return image


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


def critical_difference(ranking: Ranking, title: str) -> Figure:
    """Plot criteria on an axis of mean ranks, the best on the left (Demšar, JMLR 7, 2006).

    Bars join criteria whose mean ranks differ by less than the critical difference, that is, not
    significantly. Its length is drawn above the axis. The title says if Friedman's test finds no
    difference at all.
    """
    criteria = len(ranking.ranks)
    rows = -(-criteria // 2)
    height = 1.5 + 0.16 * len(ranking.alike) + 0.26 * rows
    figure = Figure(figsize=(6.4, height), layout="constrained")
    ax = figure.subplots()
    _rank_axis(ax, criteria, ranking.critical_difference)
    below = 0.35 + 0.3 * len(ranking.alike)
    for row, group in enumerate(ranking.alike):
        ends = ranking.ranks[group[0]] - 0.04, ranking.ranks[group[-1]] + 0.04
        y = -0.3 - 0.3 * row
        ax.plot(ends, (y, y), color="0.2", lw=3.5, solid_capstyle="butt", gid=f"alike:{row}")
    for place, (criterion, rank) in enumerate(ranking.ranks.items()):
        left = place < rows
        row = place if left else criteria - 1 - place
        _draw_rank(ax, str(criterion), rank, -below - 0.55 * (row + 0.5), left, criteria)
    ax.set_ylim(-below - 0.55 * rows, 1.4)
    ax.set_xlim(0.2 - 0.16 * criteria, criteria + 0.8 + 0.16 * criteria)
    ax.set_axis_off()
    if ranking.p >= ALPHA:
        title += "\n(Friedman's test finds no difference)"
    figure.suptitle(title, fontsize="medium")
    return figure


def _rank_axis(ax: Axes, criteria: int, critical: float) -> None:
    ax.plot((1, criteria), (0, 0), color="0.2", lw=1)
    for rank in range(1, criteria + 1):
        ax.plot((rank, rank), (0, 0.12), color="0.2", lw=1)
        ax.text(rank, 0.2, str(rank), ha="center", va="bottom", fontsize=8)
    ax.plot((1, 1 + critical), (0.95, 0.95), color="0.2", lw=1, marker="|", gid="critical")
    label = f"critical difference {critical:.2f}"
    ax.text(1 + critical / 2, 1.02, label, ha="center", va="bottom", fontsize=8)


def _draw_rank(ax: Axes, criterion: str, rank: float, y: float, left: bool, criteria: int) -> None:
    style = style_of(criterion)
    end = 0.9 if left else criteria + 0.1
    ax.plot((rank, rank, end), (0, y, y), color=style.color, lw=1.3, gid=f"rank:{criterion}")
    text = f"{style.label}  {rank:.2f}" if left else f"{rank:.2f}  {style.label}"
    ax.text(end + (-0.06 if left else 0.06), y, text, color=style.color,
            ha="right" if left else "left", va="center", fontsize=9)  # fmt: skip
