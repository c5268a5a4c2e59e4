"""What scoring costs, beside the textbook's way of it: VGG16 trained on the digits, 15 layers.

    make bench-attributions          # into docs/attributions.md

The textbook (tests/oracles/textbook.py) is the original's algorithm: one layer and one criterion at
a time, a full pass forward and back for each. Both sides in turn, CPU time of the process, medians.
"""

import argparse
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from pruning_lab.attributions import (
    APoZAttributionMetric,
    SensitivityAttributionMetric,
    TaylorAttributionMetric,
)
from pruning_lab.attributions.activations import run_together
from pruning_lab.datasets.digits import digits
from pruning_lab.models.vgg import VGG
from pruning_lab.training import Training, fit
from tests.oracles import textbook

SAMPLES, BATCH, REPEATS, MEGABYTE = 100, 100, 3, 2**20
CRITERIA: dict[str, tuple[Any, dict[str, Any]]] = {
    "apoz": (APoZAttributionMetric, {}),
    "sensitivity": (SensitivityAttributionMetric, {}),
    "taylor": (TaylorAttributionMetric, {}),
    "taylor_signed": (TaylorAttributionMetric, {"signed": True}),
}
Data = list[tuple[torch.Tensor, torch.Tensor]]


def trained() -> tuple[nn.Module, Data]:
    """VGG16 after three epochs on the digits, and 100 samples to score on."""
    torch.manual_seed(0)
    splits = digits()
    model = VGG(16, in_channels=1)
    training = Training(epochs=3, lr=0.05, momentum=0.9, weight_decay=5e-4, lr_schedule="one_cycle")
    order = torch.Generator().manual_seed(0)
    fit(model, training.optimizer(model), splits.train, training, order, "Training VGG16")
    scored = Subset(splits.score, range(SAMPLES))
    return model.eval(), list(DataLoader(scored, BATCH))


def metrics(model: nn.Module, data: Any, reduction: str) -> list[Any]:
    return [
        kind(model, data, F.cross_entropy, "cpu", reduction, **options)
        for kind, options in CRITERIA.values()
    ]


def by_textbook(model: nn.Module, data: Data, criteria: Any = CRITERIA) -> list[list[np.ndarray]]:
    modules = textbook.chain(model)
    places = textbook.sites(modules).values()
    return [
        [textbook.score(model, modules[place], data, name) for place in places] for name in criteria
    ]


def in_one_pass(model: nn.Module, data: Data) -> list[list[np.ndarray]]:
    layers = list(textbook.sites(textbook.chain(model)))
    return run_together(metrics(model, data, "none"), layers, find_best_evaluation_module=True)


def cpu_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


def activation_criteria(model: nn.Module, data: Data) -> list[str]:
    """Medians of both sides and how far they agree."""
    seconds: dict[str, list[float]] = {"textbook": [], "one pass": []}
    for _ in tqdm(range(REPEATS), desc="activation and gradient criteria"):
        for side, work in (("textbook", by_textbook), ("one pass", in_one_pass)):
            spent, found = cpu_seconds(lambda work=work: work(model, data))  # type: ignore[misc]
            seconds[side].append(spent)
            if side == "textbook":
                expected = found
    apart = np.max(
        [
            np.abs(one - other).max() / np.abs(other).max()
            for ours, theirs in zip(found, expected, strict=True)
            for one, other in zip(ours, theirs, strict=True)
        ]
    )
    old, new = (statistics.median(each) for each in seconds.values())
    return [
        f"## {len(CRITERIA)} criteria on activations and gradients, all layers, {SAMPLES} samples",
        "",
        "| | CPU seconds |",
        "| --- | ---: |",
        f"| textbook | {old:.1f} |",
        f"| one pass for all | {new:.2f} |",
        f"| ratio | **{old / new:.0f}** |",
        "",
        f"The largest difference, relative to the layer's largest score: {apart:.0e}.",
        "",
    ]


def peak_memory(samples: int) -> None:
    """Prints by how many MB the peak of this process's memory rises while it scores."""
    model, x = VGG(16, in_channels=1).eval(), torch.rand(BATCH, 1, 32, 32)
    target = torch.randint(10, (BATCH,))

    class Many:
        def __iter__(self) -> Any:
            return iter([(x, target)] * (samples // BATCH))

    layers = list(textbook.sites(textbook.chain(model)))
    with torch.no_grad():
        model(x[:1])
    Path("/proc/self/clear_refs").write_text("5")  # from here on the peak is counted anew
    before = _peak()
    run_together(metrics(model, Many(), "mean_plus_2_std"), layers, True)
    print(_peak() - before)


def _peak() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def memory() -> list[str]:
    lines = [
        "## Peak memory above the model, the same criteria",
        "",
        "| samples | MB |",
        "| ---: | ---: |",
    ]
    for samples in tqdm((100, 1000, 10_000), desc="memory"):
        command = [sys.executable, "-m", "benchmarks.attributions", "--peak", str(samples)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
        lines.append(f"| {samples} | {float(done.stdout):.0f} |")
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, help="a Markdown file")
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.peak:
        peak_memory(wanted.peak)
        return
    model, data = trained()
    lines = [
        "# What scoring costs",
        "",
        "Made by `make bench-attributions`: VGG16 trained on the digits, CPU time of the process, "
        f"medians of {REPEATS}, both sides in turn, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads of {platform.machine()}. The textbook is the "
        "original's algorithm: one layer and one criterion at a time.",
        "",
        *activation_criteria(model, data),
        *memory(),
    ]
    text = "\n".join(lines)
    if wanted.output is None:
        print(text)
    else:
        wanted.output.write_text(text)


if __name__ == "__main__":
    main()
