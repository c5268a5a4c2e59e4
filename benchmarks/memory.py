"""Rise of the process's memory while VGG16 is scored on different numbers of samples."""

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from benchmarks.one_pass import CRITERIA, metrics
from pruning_lab.attributions import ShapleyAttributionMetric
from pruning_lab.attributions.evidence.activations import run_together
from pruning_lab.attributions.unit_groups import units_of_module
from pruning_lab.models.vgg import VGG
from tests.oracles import textbook

BATCH = 100
CASES = {
    "criteria": (f"{', '.join(CRITERIA)}: all layers", (100, 1000, 10_000)),
    "fc1": ("Shapley, two orders a sample: fc1 (512 units)", (100, 1000, 10_000)),
    "conv1_1": ("Shapley, two orders a sample: conv1_1 (64 maps of 32 x 32)", (100, 200)),
    "all": ("Shapley, two orders a sample: all 15 layers", (8, 16)),
}
"""case -> (label, numbers of samples)"""


class Many:
    """A data set of ``samples`` samples that holds a single batch and repeats it."""

    def __init__(self, samples: int) -> None:
        self.x, self.target = torch.rand(BATCH, 1, 32, 32), torch.randint(10, (BATCH,))
        self.samples = samples

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for start in range(0, self.samples, BATCH):
            size = min(BATCH, self.samples - start)
            yield self.x[:size], self.target[:size]


def rise(case: str, samples: int) -> float:
    """Return the peak memory of this process while scoring, beyond model and data, in MB."""
    torch.manual_seed(0)
    model, data = VGG(16, in_channels=1).eval(), Many(samples)
    layers = list(textbook.sites(textbook.chain(model)))
    with torch.no_grad():
        model(data.x[:1])
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _peak()
    if case == "criteria":
        unit_groups = [units_of_module(layer) for layer in layers]
        run_together(metrics(model, data, "cpu", "mean_plus_2_std"), unit_groups, True)
    else:
        metric = ShapleyAttributionMetric(
            model, data, F.cross_entropy, "cpu", "mean_plus_2_std", sv_samples=2
        )
        chosen = {"fc1": layers[-2:-1], "conv1_1": layers[:1], "all": layers}[case]
        metric.estimate([units_of_module(layer) for layer in chosen], True)
    return _peak() - before


def _peak() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def section() -> list[str]:
    lines = [
        "Peak of the resident memory above model and data, reduced to `mean_plus_2_std`, each in a "
        "process of its own.",
        "",
        "| scored | samples | MB |",
        "| --- | ---: | ---: |",
    ]
    runs = [(case, count) for case, (_, counts) in CASES.items() for count in counts]
    for case, count in tqdm(runs, desc="memory"):
        command = [sys.executable, "-m", "benchmarks.memory", case, str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
        lines.append(f"| {CASES[case][0]} | {count} | {float(done.stdout):.0f} |")
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("samples", type=int)
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    print(rise(wanted.case, wanted.samples))
