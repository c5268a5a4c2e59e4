"""What scoring costs, beside the textbook's way of it: VGG16 trained on the digits, 15 layers.

    make bench-attributions                                     # all, into docs/attributions.md
    python -m benchmarks.attributions --only memory coverage    # some of its sections

The textbook (tests/oracles/textbook.py) is the original's algorithm: one layer and one criterion at
a time, a full pass forward and back for each; Shapley values by orders that all samples share.
Seconds are those of the process on one thread of a CPU, or of a GPU with ``--device cuda``.
"""

import argparse
import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks import coverage, growth, memory, one_pass, profile, pruning_step, shapley
from benchmarks.network import Network, trained_network

OUTPUT = Path("docs/attributions.md")
Section = Callable[[], list[str]]
ON_DEVICE = ("one_pass", "permutations", "error", "order", "profile")
"""The sections that run on the device that is asked for; the others are about the CPU."""


def sections(network: Callable[[], Network]) -> dict[str, tuple[str, Section]]:
    """name -> title and work, in the order of the document."""
    return {
        "one_pass": ("Activations and gradients", lambda: one_pass.section(network())),
        "permutations": (
            "Shapley values: the same permutations", lambda: shapley.same_permutations(network())
        ),
        "error": ("Shapley values: the same error", lambda: shapley.same_error(network())),
        "order": ("Shapley values: the same order again",
                  lambda: shapley.repeated_order(network())),
        "coverage": ("Intervals", coverage.section),
        "memory": ("Memory", memory.section),
        "growth": ("Layers, units, samples", growth.section),
        "profile": ("Where the time goes", lambda: profile.section(network())),
        "pruning": ("The pruning step", pruning_step.section),
    }  # fmt: skip


def read(path: Path) -> dict[str, str]:
    """title -> text of the document's sections; the first is the head."""
    text = path.read_text() if path.exists() else ""
    parts = [part.split("\n", 1) for part in text.split("\n## ")[1:]]
    return {title: body.strip() for title, body in parts}


def write(path: Path, found: dict[str, str]) -> None:
    head = "# What scoring costs\n\n" + __doc__.split("\n\n", 2)[2].replace("``", "`")
    order = [title for title, _ in sections(_no_network).values()]
    titles = sorted(found, key=lambda title: (title not in order, [*order, title].index(title)))
    body = [f"## {title}\n\n{found[title]}\n" for title in titles]
    path.write_text("\n".join([head, *body]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=OUTPUT, help="a Markdown file")
    parser.add_argument("--device", default="cpu", help="cpu (on one thread), cuda")
    parser.add_argument("--only", nargs="+", metavar="SECTION", help="other sections stay")
    parser.add_argument("--network", type=Path, help="keep the trained network in this file")
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    known = {
        name: (title if wanted.device == "cpu" else f"{title}, on a GPU", work)
        for name, (title, work) in sections(
            partial(_network, wanted.device, wanted.network)
        ).items()
    }
    unknown = set(wanted.only or ()) - known.keys()
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    on_gpu = wanted.device != "cpu"
    where = torch.cuda.get_device_name() if on_gpu else platform.machine()
    for name in wanted.only or known:
        title, work = known[name]
        if on_gpu and name not in ON_DEVICE:
            print(f"{name} is about the CPU: left out.")
            continue
        lines = work()
        command = f"python -m benchmarks.attributions --only {name} --device {wanted.device}"
        made = f"*`{command}`, torch {torch.__version__}, {where}.*"
        write(wanted.output, read(wanted.output) | {title: "\n".join([*lines, "", made])})


def _no_network() -> Network:
    raise AssertionError("only the titles are wanted")


_trained: dict[str, Network] = {}


def _network(device: str, cache: Path | None) -> Network:
    if device not in _trained:
        _trained[device] = trained_network(device, cache=cache)
    return _trained[device]


if __name__ == "__main__":
    main()
