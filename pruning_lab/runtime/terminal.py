"""Format tables, durations, amounts and layers for a terminal."""

from collections.abc import Collection, Sequence

from torch import nn

WIDTH = 100
"""Width of tables, in characters."""


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> list[str]:
    """Return a table's lines, at most WIDTH wide; ``align`` has an ``l`` or ``r`` per column."""
    all_rows = [heads, *rows]
    widths = [max(len(row[place]) for row in all_rows) for place in range(len(heads))]
    lines = []
    for row in all_rows:
        cells = [
            cell.ljust(width) if side == "l" else cell.rjust(width)
            for cell, width, side in zip(row, widths, align, strict=True)
        ]
        line = "  ".join(cells).rstrip()
        lines.append(line if len(line) <= WIDTH else line[: WIDTH - 3] + "...")
    return lines


def duration(seconds: float) -> str:
    """Return a duration with its unit: ``0.4 s``, ``12 min``, ``1.5 h``; ``-`` for 0."""
    if seconds == 0:
        return "-"
    if seconds < 9.95:
        return f"{seconds:.1f} s" if seconds >= 0.095 else "< 0.1 s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if seconds < 99.5 * 60:
        return f"{seconds / 60:.0f} min"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"


def amount(number: float) -> str:
    """Return a number with three digits, a space and its SI prefix, to be followed by a unit."""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:#.3g}".removesuffix(".") + f" {prefix}"
    return f"{number:.0f} "


def layers_in_words(names: Collection[str]) -> str:
    """Return the number of layers, or the name of a single one."""
    return f"layer {next(iter(names))}" if len(names) == 1 else f"{len(names)} layers"


def kind_of(layer: nn.Module) -> str:
    """Return a layer's class and, for a convolution, its kernel size."""
    kernel = getattr(layer, "kernel_size", None)
    grouped = ", grouped" if getattr(layer, "groups", 1) > 1 else ""
    size = f" {'x'.join(map(str, kernel))}{grouped}" if kernel else ""
    return type(layer).__name__ + size
