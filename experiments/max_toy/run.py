"""Reproduce the paper's Fig. 1 exactly: each criterion's score of a unit that does nothing."""

from collections.abc import Callable
from functools import partial
from itertools import permutations
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from pruning_lab.attributions import (
    APoZAttributionMetric,
    AttributionMetric,
    RandomAttributionMetric,
    SensitivityAttributionMetric,
    ShapleyAttributionMetric,
    TaylorAttributionMetric,
    WeightNormAttributionMetric,
)
from pruning_lab.compare import style_of

LOSSES = {"L1": F.l1_loss, "MSE": F.mse_loss}
CRITERIA: dict[str, Callable[..., AttributionMetric]] = {
    "random": RandomAttributionMetric,
    "apoz": APoZAttributionMetric,
    "sensitivity": SensitivityAttributionMetric,
    "taylor": TaylorAttributionMetric,
    "taylor_signed": partial(TaylorAttributionMetric, signed=True),
    "weight_norm": WeightNormAttributionMetric,
    # All 24 permutations of 4 units: the exact Shapley value, not a sample.
    "shapley": partial(ShapleyAttributionMetric, permutations=list(permutations(range(4)))),
}
UNITS = ["(x2 - x1)/4", "x1 - x2", "x1 + x2", "x1 + x2, unused"]


def max_network() -> nn.Sequential:
    """Compute max(x1, x2) = |x1 - x2|/2 + (x1 + x2)/2 by three ReLU units; a fourth is unused."""
    hidden, output = nn.Linear(2, 4, bias=False), nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        hidden.weight.copy_(torch.tensor([[-0.25, 0.25], [1.0, -1.0], [1.0, 1.0], [1.0, 1.0]]))
        output.weight.copy_(torch.tensor([[2.0, 0.5, 0.5, 0.0]]))
    return nn.Sequential(hidden, nn.ReLU(), output).double()


def quadrature() -> tuple[Tensor, Tensor]:
    """Return six inputs whose mean is the expectation over x uniform in [0, 10]^2, and max(x1, x2).

    With any of the units removed, the network's error keeps its sign and is linear in x on either
    side of the diagonal, so both losses are polynomials of degree at most 2 there. On a triangle
    the mean over the points with barycentric coordinates (2/3, 1/6, 1/6) is exact up to degree 2.
    """
    barycentric = torch.tensor([[4, 1, 1], [1, 4, 1], [1, 1, 4]], dtype=torch.float64)
    above = torch.tensor([[0, 0], [0, 1], [1, 1]], dtype=torch.float64)  # corners, x1 < x2
    points = torch.cat([barycentric @ above, barycentric @ above.flip(1)]) * 10 / 6
    return points, points.max(dim=1, keepdim=True).values


def scores(loss: str) -> dict[str, np.ndarray]:
    """Score the four hidden units by every criterion: ``scores[criterion]`` is (4,)."""
    model, batch = max_network(), quadrature()
    return {
        name: metric(model, [batch], LOSSES[loss], "cpu").run(
            model[0], find_best_evaluation_module=True
        )
        for name, metric in CRITERIA.items()
    }


def table(by_loss: dict[str, dict[str, np.ndarray]]) -> str:
    """Format the scores as a Markdown table; one row where both losses give the same."""
    lines = [
        "| criterion | loss | " + " | ".join(UNITS) + " |",
        "| --- | --- |" + " ---: |" * len(UNITS),
    ]
    for criterion in CRITERIA:
        losses_of: dict[str, list[str]] = {}
        for loss, by_criterion in by_loss.items():
            numbers = " | ".join(f"{score + 0.0:.7g}" for score in by_criterion[criterion])
            losses_of.setdefault(numbers, []).append(loss)
        for numbers, losses in losses_of.items():
            lines.append(f"| {style_of(criterion).label} | {', '.join(losses)} | {numbers} |")
    return "\n".join(lines)


def figure(by_criterion: dict[str, np.ndarray]) -> Figure:
    """Draw one panel per criterion, one bar per unit; the unused unit is hatched."""
    result = Figure(figsize=(10, 2.2), layout="constrained")
    for ax, (criterion, values) in zip(
        result.subplots(1, len(by_criterion)), by_criterion.items(), strict=True
    ):
        style = style_of(criterion)
        bars = ax.bar(range(1, 5), values + 0.0, color=style.color)
        bars[-1].set(hatch="////", edgecolor="white")
        ax.bar_label(bars, fmt="%.2g", fontsize=7)
        ax.set_title(style.label, fontsize=9)
        ax.set_xticks([1, 2, 3, 4], ["1", "2", "3", "4\nunused"], fontsize=8)
        ax.set_ylim(0, 1.15 * max(values.max(), 0.1))
        ax.set_yticks([])
        ax.spines[["top", "right", "left"]].set_visible(False)
    result.supxlabel("hidden unit of the network that computes max(x1, x2)", fontsize=9)
    return result


def main(folder: Path) -> None:
    """Print the table and write the figure into ``folder``."""
    by_loss = {loss: scores(loss) for loss in LOSSES}
    print(table(by_loss))
    path = folder / "max_toy.png"
    figure(by_loss["L1"]).savefig(path, dpi=100, metadata={"Software": None})
    print(f"\nfigure: {path}")


if __name__ == "__main__":
    main(Path(__file__).parent)
