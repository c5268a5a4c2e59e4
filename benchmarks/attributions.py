"""Measure the cost of scoring against the textbook's: VGG16 trained on the digits, 15 layers.

    make bench-attributions                                     # all, into docs/attributions.md
    python -m benchmarks.attributions --only memory coverage    # some of its sections

The textbook (tests/oracles/textbook.py) is the original's algorithm: one layer and one criterion at
a time, a full pass forward and back for each; Shapley values by orders that all samples share.
Seconds are those of the process on one thread of a CPU, or of a GPU with ``--device cuda``.
"""

import argparse
import platform
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks import (
    coverage,
    growth,
    memory,
    one_pass,
    profile,
    pruning_step,
    same_error,
    shapley,
)
from benchmarks.network import Network, trained_network

OUTPUT = Path("docs/attributions.md")
Trained = Callable[[], Network]


class Section(NamedTuple):
    """A section of the document; one that is not ``on_device`` measures the CPU only."""

    title: str
    work: Callable[[Trained], list[str]]
    on_device: bool = False


SECTIONS = {
    "one_pass": Section("Activations and gradients", lambda net: one_pass.section(net()), True),
    "permutations": Section(
        "Shapley values: the same permutations", lambda net: shapley.same_permutations(net()), True
    ),
    "error": Section(
        "Shapley values: the same error", lambda net: same_error.same_error(net()), True
    ),
    "order": Section(
        "Shapley values: the same order again", lambda net: shapley.repeated_order(net()), True
    ),
    "coverage": Section("Intervals", lambda _: coverage.section()),
    "memory": Section("Memory", lambda _: memory.section()),
    "growth": Section("Layers, units, samples", lambda _: growth.section()),
    "profile": Section("Where the time goes", lambda net: profile.section(net()), True),
    "pruning": Section("The pruning step", lambda _: pruning_step.section()),
}  # fmt: skip
"""Sections in the order of the document."""


def read(path: Path) -> dict[str, str]:
    """Return the document's sections, title -> text."""
    text = path.read_text() if path.exists() else ""
    parts = [part.split("\n", 1) for part in text.split("\n## ")[1:]]
    return {title: body.strip() for title, body in parts}


def write(path: Path, found: dict[str, str]) -> None:
    """Write the document; sections measured on a GPU come last."""
    head = "# What scoring costs\n\n" + __doc__.split("\n\n", 2)[2].replace("``", "`")
    known = [section.title for section in SECTIONS.values() if section.title in found]
    titles = dict.fromkeys([*known, *found])
    path.write_text("\n".join([head, *(f"## {title}\n\n{found[title]}\n" for title in titles)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=OUTPUT, help="a Markdown file")
    parser.add_argument("--device", default="cpu", help="cpu (on one thread), cuda")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="keep all other sections")
    parser.add_argument("--network", type=Path, help="file that caches the trained network")
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False  # float32 on both sides
    on_gpu = wanted.device != "cpu"
    where = torch.cuda.get_device_name() if on_gpu else platform.machine()
    trained = cache(partial(trained_network, wanted.device, cache=wanted.network))
    for name in wanted.only or SECTIONS:
        section = SECTIONS[name]
        if on_gpu and not section.on_device:
            print(f"{name} measures the CPU only: skipped.")
            continue
        lines = section.work(trained)
        command = f"python -m benchmarks.attributions --only {name} --device {wanted.device}"
        made = f"*`{command}`, torch {torch.__version__}, {where}.*"
        title = f"{section.title}, on a GPU" if on_gpu else section.title
        write(wanted.output, read(wanted.output) | {title: "\n".join([*lines, "", made])})


if __name__ == "__main__":
    main()
