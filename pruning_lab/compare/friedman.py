"""Critical-difference diagram of the criteria's mean ranks over blocks."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pruning_lab.compare.statistics import Ranking
from pruning_lab.compare.style import style_of


def critical_difference(ranking: Ranking, title: str) -> Figure:
    """Plot criteria on an axis of mean ranks, the best on the left (Demšar, JMLR 7, 2006).

    Bars join criteria whose mean ranks differ by less than the critical difference, that is, not
    significantly. Its length is drawn above the axis.
    """
    criteria = len(ranking.ranks)
    rows = -(-criteria // 2)
    height = 1.5 + 0.16 * len(ranking.alike) + 0.26 * rows
    figure = Figure(figsize=(6.4, height), layout="constrained")
    ax = figure.subplots()
    _scale(ax, criteria, ranking.critical_difference)
    below = 0.35 + 0.3 * len(ranking.alike)
    for row, group in enumerate(ranking.alike):
        ends = ranking.ranks[group[0]] - 0.04, ranking.ranks[group[-1]] + 0.04
        y = -0.3 - 0.3 * row
        ax.plot(ends, (y, y), color="0.2", lw=3.5, solid_capstyle="butt", gid=f"alike:{row}")
    for place, (criterion, rank) in enumerate(ranking.ranks.items()):
        left = place < rows
        row = place if left else criteria - 1 - place
        _name(ax, str(criterion), rank, -below - 0.55 * (row + 0.5), left, criteria)
    ax.set_ylim(-below - 0.55 * rows, 1.4)
    ax.set_xlim(0.2 - 0.16 * criteria, criteria + 0.8 + 0.16 * criteria)
    ax.set_axis_off()
    figure.suptitle(title, fontsize="medium")
    return figure


def _scale(ax: Axes, criteria: int, critical: float) -> None:
    ax.plot((1, criteria), (0, 0), color="0.2", lw=1)
    for rank in range(1, criteria + 1):
        ax.plot((rank, rank), (0, 0.12), color="0.2", lw=1)
        ax.text(rank, 0.2, str(rank), ha="center", va="bottom", fontsize=8)
    ax.plot((1, 1 + critical), (0.95, 0.95), color="0.2", lw=1, marker="|", gid="critical")
    label = f"critical difference {critical:.2f}"
    ax.text(1 + critical / 2, 1.02, label, ha="center", va="bottom", fontsize=8)


def _name(ax: Axes, criterion: str, rank: float, y: float, left: bool, criteria: int) -> None:
    style = style_of(criterion)
    end = 0.9 if left else criteria + 0.1
    ax.plot((rank, rank, end), (0, y, y), color=style.color, lw=1.3, gid=f"rank:{criterion}")
    text = f"{style.label}  {rank:.2f}" if left else f"{rank:.2f}  {style.label}"
    ax.text(end + (-0.06 if left else 0.06), y, text, color=style.color,
            ha="right" if left else "left", va="center", fontsize=9)  # fmt: skip
