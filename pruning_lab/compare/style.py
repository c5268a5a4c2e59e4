"""Names and styles of criteria, the same in every figure."""

import hashlib
import re
from collections.abc import Iterable
from typing import NamedTuple

from matplotlib.axes import Axes


class Style(NamedTuple):
    """Label and style of a criterion; line and marker distinguish it without colour."""

    label: str
    color: str
    marker: str
    linestyle: str | tuple[int, tuple[int, ...]]


# Okabe & Ito's palette, which colour-blind readers can tell apart; without its yellow, which
# vanishes on white paper, and with a grey for chance.
STYLES = {
    "random": Style("Random", "#666666", "x", ":"),
    "apoz": Style("APoZ", "#009E73", "v", (0, (4, 2))),
    "sensitivity": Style("Sensitivity", "#CC79A7", "D", (0, (4, 1, 1, 1))),
    "taylor": Style("Taylor", "#D55E00", "s", (0, (8, 2))),
    "taylor_signed": Style("Signed Taylor", "#E69F00", "P", (0, (8, 1, 1, 1))),
    "weight_norm": Style("Weight norm", "#56B4E9", "^", (0, (2, 1))),
    "shapley": Style("Shapley", "#0072B2", "o", "-"),
}

NAMES = {
    "banzhaf": "Banzhaf",
    "bn_scale": "BatchNorm scale",
    "chip": "CHIP",
    "conductance": "Conductance",
    "fisher": "Fisher",
    "fpgm": "FPGM",
    "hrank": "HRank",
    "internal_influence": "Internal influence",
    "l2_norm": "L2 norm",
    "lamp": "LAMP",
    "leave_one_out": "Leave-one-out",
    "mean_activation": "Mean activation",
    "obd": "OBD",
    "owen_gradient": "Owen gradient",
    "shapley_exact": "Exact Shapley",
    "std_activation": "Std of activations",
    "taylor_weight": "Taylor of weights",
    "thinet": "ThiNet",
}
"""Labels of the other criteria."""

# For criteria beyond the styles: Paul Tol's muted palette, and markers not used above.
_OTHER_COLORS = ["#332288", "#117733", "#999933", "#882255", "#AA4499", "#44AA99", "#CC6677"]
_OTHER_MARKERS = "*<>ph1"
_OTHER_LINESTYLES = ("-", "--", "-.", ":")


def style_of(criterion: str) -> Style:
    """Return the style of a ``criterion``; one not in ``STYLES`` gets one fixed by its name.

    A criterion with options in its name (``shapley samples=64``) keeps its colour.
    """
    if criterion in STYLES:
        return STYLES[criterion]
    name, _, options = criterion.partition(" ")
    digest = hashlib.sha256(criterion.encode()).digest()
    known = STYLES.get(name)
    named = known.label if known else NAMES.get(name)
    return Style(
        f"{named} {options}".strip() if named else criterion.replace("_", " "),
        known.color if known else _OTHER_COLORS[digest[0] % len(_OTHER_COLORS)],
        _OTHER_MARKERS[digest[1] % len(_OTHER_MARKERS)],
        _OTHER_LINESTYLES[digest[2] % len(_OTHER_LINESTYLES)],
    )


def in_order(criteria: Iterable[str]) -> list[str]:
    """Return the distinct criteria in the order of ``STYLES``, then the others by name.

    Options in names are sorted with numbers as numbers (samples=16 before samples=128).
    """
    order = list(STYLES)

    def place(criterion: str) -> tuple[int, list[int | str]]:
        name = criterion.partition(" ")[0]
        parts = re.split(r"(\d+)", criterion)  # every second part is a number
        numbers = [int(part) if index % 2 else part for index, part in enumerate(parts)]
        return (order.index(name) if name in order else len(order), numbers)

    return sorted(set(criteria), key=place)


def bare(ax: Axes, *sides: str) -> None:
    """Hide the frame of an axes on the given sides; without any, at the top and on the right."""
    ax.spines[list(sides or ("top", "right"))].set_visible(False)
