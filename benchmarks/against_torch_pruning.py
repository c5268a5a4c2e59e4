"""Compare Torch-Pruning and pruning_lab on one model of each of torchvision's families.

    make against-torch-pruning       # into docs/against_torch_pruning.md

Both remove 30 % random units of every group, from the same weights, in float64 on one thread, in a
process of their own; the two sides alternate. Measured are the error against the masked twin, and
the seconds to find the groups and to prune.
"""

import argparse
import copy
import json
import resource
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from benchmarks.zoo import build, case_of
from tests.coupling.checks import difference, outputs
from tests.oracles.twin import Twin, keep_in_range, random_plan, randomise_all

MODELS = (
    "alexnet", "vgg11_bn", "resnet18", "resnext50_32x4d", "wide_resnet50_2", "densenet121",
    "squeezenet1_1", "googlenet", "inception_v3", "shufflenet_v2_x1_0", "mobilenet_v2",
    "mobilenet_v3_large", "mnasnet1_0", "efficientnet_b0", "efficientnet_v2_s", "regnet_x_400mf",
    "regnet_y_400mf", "convnext_tiny", "vit_b_16", "swin_t", "swin_v2_t", "maxvit_t",
)  # fmt: skip
SIDES = ("pruning_lab", "Torch-Pruning")
SHARE, REPEATS, SECONDS, GIGABYTES = 0.3, 3, 120, 12


def one(side: str, name: str) -> dict[str, Any]:
    """Measure one side on one model; seconds are medians of the repeats."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    resource.setrlimit(resource.RLIMIT_AS, (GIGABYTES * 2**30,) * 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case = case_of(name)
        original = randomise_all(build(name, case)).double()
    x = torch.randn(4, *case.size, dtype=torch.float64)
    keep_in_range(original, x)
    count = sum(parameter.numel() for parameter in original.parameters())
    runs = [(ours if side == SIDES[0] else theirs)(original, x) for _ in range(REPEATS)]
    pruned, twin = runs[0][:2]
    before, expected, actual = outputs(original, x), outputs(twin, x), outputs(pruned, x)
    return {
        "left": sum(parameter.numel() for parameter in pruned.parameters()) / count,
        "effect": difference(before, expected),
        "error": difference(actual, expected),
        "find": statistics.median(run[2] for run in runs),
        "prune": statistics.median(run[3] for run in runs),
    }


Run = tuple[nn.Module, nn.Module, float, float]
"""Pruned model, its twin, seconds to find the groups, seconds to prune."""


def ours(original: nn.Module, x: torch.Tensor) -> Run:
    from pruning_lab.pruner import Pruner
    from pruning_lab.pruner.removal import classes_of_plan

    model = copy.deepcopy(original)
    pruner = Pruner(model, tuple(x.shape[1:]), "cpu")
    started = time.perf_counter()
    structure = pruner.structure
    find_seconds = time.perf_counter() - started
    plan = random_plan(structure, SHARE, seed=0)
    started = time.perf_counter()
    pruner.prune_groups(plan)
    prune_seconds = time.perf_counter() - started
    twin = Twin(copy.deepcopy(original), structure, classes_of_plan(structure, plan))
    return model, twin, find_seconds, prune_seconds


def theirs(original: nn.Module, x: torch.Tensor) -> Run:
    from benchmarks import torch_pruning_side

    model = copy.deepcopy(original)
    cuts, find_seconds, prune_seconds = torch_pruning_side.prune(model, x, SHARE)
    return model, torch_pruning_side.twin(original, cuts), find_seconds, prune_seconds


def in_own_process(side: str, name: str) -> dict[str, Any]:
    """Run ``one`` in a new process; return its result, or the reason under ``failed``."""
    command = [sys.executable, "-m", "benchmarks.against_torch_pruning", "--one", side, name]
    try:
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not finished after {SECONDS} s"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["killed"])[-1][:100]}
    return json.loads(done.stdout.splitlines()[-1])


def report(rows: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Return the Markdown page: totals, and a row for each model and side."""
    exact = {side: [n for n in rows if is_exact(rows[n][side])] for side in SIDES}
    both = [name for name in rows if all(name in exact[side] for side in SIDES)]

    def ratio(key: str) -> float:
        return statistics.median(rows[n][SIDES[1]][key] / rows[n][SIDES[0]][key] for n in both)

    lines = [
        "# Side by side with Torch-Pruning",
        "",
        "Made by `make against-torch-pruning`: 30 % random units of every group removed, float64, "
        "one thread, small images, the two sides in turn, each within 12 GB of address space and "
        "120 s. Torch-Pruning 1.6.1 is called as its "
        "README does (`BasePruner`, the output layer ignored) and nothing is added: its documented "
        "means for single architectures (`out_channel_groups`, customised pruners, changed forward "
        "functions) can mend failures that are shown here. *Error* is the largest difference to "
        "the masked twin, *effect* that of the removal, both relative to the largest output; "
        "*left* the share of the parameters that is left; seconds are medians of three.",
        "",
        *(f"- **{side}: {len(exact[side])} of {len(rows)} exact**" for side in SIDES),
        f"- on the {len(both)} models that are exact on both sides, Torch-Pruning takes "
        f"{ratio('find'):.2f} times as long to find the groups and {ratio('prune'):.2f} times as "
        "long to prune (medians of the ratios)",
        "",
        "| model | side | find | prune | left | effect | error |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, sides in rows.items():
        lines += [line(name, side, sides[side]) for side in SIDES]
    return "\n".join(lines) + "\n"


def is_exact(found: dict[str, Any]) -> bool:
    return "failed" not in found and found["error"] < 1e-9


def line(name: str, side: str, found: dict[str, Any]) -> str:
    if "failed" in found:
        return f"| {name} | {side} | | | | | {found['failed']} |"
    error = f"{found['error']:.0e}"
    return (
        f"| {name} | {side} | {found['find']:.2f} s | {found['prune']:.2f} s | {found['left']:.0%} "
        f"| {found['effect']:.1e} | {error if is_exact(found) else f'**{error}**'} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--output", type=Path, help="a Markdown file")
    parser.add_argument("--one", nargs=2, metavar=("SIDE", "MODEL"), help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.one:
        print(json.dumps(one(*wanted.one)))
        return
    rows = {
        name: {side: in_own_process(side, name) for side in SIDES} for name in tqdm(wanted.models)
    }
    text = report(rows)
    if wanted.output is None:
        print(text)
    else:
        wanted.output.write_text(text)


if __name__ == "__main__":
    main()
