"""Growth of the scoring cost with the number of layers, of units per layer, and of samples."""

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import nn
from tqdm import tqdm

from benchmarks.one_pass import CRITERIA, metrics
from benchmarks.timing import cpu_seconds
from pruning_lab.attributions import ShapleyAttributionMetric
from pruning_lab.attributions.evidence.activations import run_together
from pruning_lab.attributions.unit_groups import units_of_module
from tests.oracles import textbook

PICTURE = Path("docs/attributions_growth.png")
REPEATS = 3
START = {"layers": 4, "units": 32, "samples": 16}
"""Values of the quantities that are not varied."""

RANGES = {
    "layers": (2, 4, 8, 16),
    "units": (16, 32, 64, 128),
    "samples": (8, 16, 32, 64),
}


def chain(layers: int, units: int) -> nn.Module:
    """Build a chain of ``layers`` convolutions with ``units`` channels each."""
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for number in range(layers):
        parts += [nn.Conv2d(units if number else 3, units, 3, padding=1), nn.LeakyReLU()]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(units, 10)).eval()


def ways(layers: int, units: int, samples: int) -> dict[str, Callable[[], object]]:
    """Return the functions to time, by label; each scores all layers."""
    model = chain(layers, units)
    data = [(torch.randn(samples, 3, 8, 8), torch.randint(10, (samples,)))]
    convolutions = [module for module in model if isinstance(module, nn.Conv2d)]
    unit_groups = [units_of_module(layer) for layer in convolutions]
    shapley = ShapleyAttributionMetric(model, data, F.cross_entropy, "cpu", sv_samples=2)

    def by_textbook() -> None:
        for name in CRITERIA:
            for layer in convolutions:
                textbook.score(model, layer, data, name)

    return {
        f"textbook, {len(CRITERIA)} criteria": by_textbook,
        f"one pass, {len(CRITERIA)} criteria": partial(
            run_together, metrics(model, data, "cpu", "mean"), unit_groups, True
        ),
        "Shapley, two orders a sample": partial(shapley.estimate, unit_groups, True),
    }


def measured() -> Iterator[tuple[str, int, dict[str, float]]]:
    """Yield the varied quantity, its value, and median seconds by label, measured in turn."""
    points = [(varied, value) for varied, values in RANGES.items() for value in values]
    for varied, value in tqdm(points, desc="growth"):
        timed = ways(**(START | {varied: value}))
        seconds: dict[str, list[float]] = {way: [] for way in timed}
        for _ in range(REPEATS):
            for way, work in timed.items():
                seconds[way].append(cpu_seconds(work)[0])
        yield varied, value, {way: statistics.median(spent) for way, spent in seconds.items()}


def exponent(values: list[int], seconds: list[float]) -> float:
    """Fit the log-log slope to the upper three points, where constant costs weigh less."""
    return float(np.polyfit(np.log(values[-3:]), np.log(seconds[-3:]), 1)[0])


def section() -> list[str]:
    curves: dict[str, dict[str, list[float]]] = {}
    for varied, _, seconds in measured():
        for way, spent in seconds.items():
            curves.setdefault(varied, {}).setdefault(way, []).append(spent)
    PICTURE.parent.mkdir(exist_ok=True)
    picture(curves).savefig(PICTURE, dpi=130)
    lines = [
        f"Chains of 3x3 convolutions on maps of 8 x 8; {START['layers']} layers of "
        f"{START['units']} units and {START['samples']} samples where these are not varied. CPU "
        f"seconds for all layers, medians of {REPEATS}; exponents over the upper three points.",
        "",
        f"![Seconds over the number of layers, units and samples]({PICTURE.name})",
        "",
        "| | varied | seconds | exponent |",
        "| --- | --- | --- | ---: |",
    ]
    for varied, by_way in curves.items():
        for way, seconds in by_way.items():
            points = zip(RANGES[varied], seconds, strict=True)
            cells = ", ".join(f"{value}: {spent:.3g}" for value, spent in points)
            slope = exponent(list(RANGES[varied]), seconds)
            lines.append(f"| {way} | {varied} | {cells} | {slope:.2f} |")
    return [
        *lines,
        "",
        "To be expected where the arithmetic is all that counts: in the layers 1 for one pass, and "
        "2 for the textbook's way and for Shapley values, since each layer's units run through all "
        "layers behind; in the units 2, and 3 for Shapley values; in the samples 1. What is less "
        "tells of work that does not depend on them, and of processors that like large matrices.",
    ]


def picture(curves: dict[str, dict[str, list[float]]]) -> Figure:
    figure = Figure(figsize=(9.5, 3.4), layout="constrained")
    panels = figure.subplots(1, len(curves), sharey=True)
    for ax, (varied, by_way) in zip(panels, curves.items(), strict=True):
        for way, seconds in by_way.items():
            slope = exponent(list(RANGES[varied]), seconds)
            (line,) = ax.loglog(RANGES[varied], seconds, marker="o", ms=4, label=way)
            ax.annotate(
                f"{slope:.1f}", (RANGES[varied][-1], seconds[-1]), xytext=(5, -3),
                textcoords="offset points", color=line.get_color(), fontsize=9,
            )  # fmt: skip
        ax.set_xticks(RANGES[varied], [str(value) for value in RANGES[varied]])
        ax.minorticks_off()
        ax.set_xlabel(varied)
        ax.grid(color="0.92")
        ax.margins(x=0.12)
    panels[0].set_ylabel("CPU seconds, all layers")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    return figure


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("\n".join(section()))
