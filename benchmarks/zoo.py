"""Check that slicing is exact for every classifier, segmentation and video model of torchvision.

    make zoo                                       # all of them, into docs/zoo.md
    python -m benchmarks.zoo resnet18 vit_b_16     # some of them, to the screen

30 % random units of every group are removed, twice in a row. The output and one training step are
compared with the masked twin's, the FLOPs with those that the widths predict, and the outputs with
those of a saved and loaded copy. Weights are random, images small.
"""

import argparse
import collections
import gc
import statistics
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision.ops import StochasticDepth
from tqdm import tqdm

from pruning_lab.graph.added_code import skeleton
from pruning_lab.profiling.flops import count_flops, count_parameters
from pruning_lab.pruner.saved_model import load_pruned, save_pruned
from tests.coupling.checks import (
    Outcome,
    outputs,
    predicted_flops,
    prunable_share,
    prune_and_compare,
    worst,
)
from tests.oracles.twin import keep_in_range, randomise_all

SPACES = {
    "Classification": torchvision.models,
    "Segmentation": torchvision.models.segmentation,
    "Video": torchvision.models.video,
}
ALONE, LARGE = 80_000_000, 150_000_000
"""Parameters above which a model is checked alone, and above which in float32."""
TOLERANCE = {torch.float64: (1e-9, 1e-9), torch.float32: (1e-4, 1e-2)}
"""For outputs, and for a training step, whose batch statistics magnify rounding errors."""


@dataclass(frozen=True)
class Case:
    """Arguments of a model, and the ``size`` of one of its samples.

    A ``heavy`` model is checked alone.
    """

    size: tuple[int, ...] = (3, 64, 64)
    arguments: tuple[tuple[str, Any], ...] = ()
    heavy: bool = False


CASES = {
    "googlenet": Case((3, 96, 96), (("init_weights", False),)),
    "inception_v3": Case((3, 299, 299), (("init_weights", False),)),
    "maxvit_t": Case((3, 224, 224)),
    "s3d": Case((3, 16, 224, 224)),
}
FAMILIES = {
    "vit_h_14": Case((3, 28, 28), (("image_size", 28),)),
    "vit": Case((3, 32, 32), (("image_size", 32),)),
    "mvit": Case((3, 16, 224, 224), heavy=True),
    "deeplab": Case(arguments=(("weights_backbone", None), ("aux_loss", True))),
    "fcn": Case(arguments=(("weights_backbone", None), ("aux_loss", True))),
    "lraspp": Case(arguments=(("weights_backbone", None),)),
    "mc3": Case((3, 8, 64, 64)),
    "r2plus1d": Case((3, 8, 64, 64)),
    "r3d": Case((3, 8, 64, 64)),
    "swin3d": Case((3, 8, 64, 64)),
}
"""name prefix -> case; the first match counts."""


@dataclass(frozen=True)
class Row:
    """A row of the table; errors and effect are relative."""

    kind: str
    model: str
    parameters: int
    groups: int
    prunable: float
    removed: float
    effect: float
    error: float
    step_error: float
    second_error: float
    flops_as_predicted: bool
    loaded_alike: bool
    find_seconds: float
    prune_seconds: float
    dtype: torch.dtype
    frozen: dict[str, int]

    @property
    def exact(self) -> bool:
        allowed, allowed_in_a_step = TOLERANCE[self.dtype]
        return (
            worst([self.error, self.second_error]) < allowed
            and self.step_error < allowed_in_a_step
            and self.flops_as_predicted
            and self.loaded_alike
        )


def parameters_of(name: str) -> int:
    """Return a model's number of parameters without building it."""
    return torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"]


def case_of(name: str) -> Case:
    fitting = [case for start, case in FAMILIES.items() if name.startswith(start)]
    return CASES.get(name, (fitting or [Case()])[0])


def build(name: str, case: Case) -> nn.Module:
    """Build a model without Dropout and stochastic depth: its twin draws other random numbers."""
    model = torchvision.models.get_model(name, weights=None, **dict(case.arguments))
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd | StochasticDepth):
            module.p = 0.0
    return model


def check(kind: str, name: str, single: bool = False) -> Row:
    """Measure one model; with ``single`` in float32, whatever its size."""
    case = case_of(name)
    model = build(name, case)
    count = count_parameters(model)
    dtype = torch.float32 if single or parameters_of(name) > LARGE else torch.float64
    x = torch.randn(4, *case.size, dtype=dtype, generator=torch.Generator().manual_seed(1))
    model = keep_in_range(randomise_all(model).to(dtype), x)
    flops, original = count_flops(model, case.size), skeleton(model)
    first = prune_and_compare(model, case.size)
    pruned = first.pruner.model
    predicted = predicted_flops(original, case.size, first.structure, first.classes)
    remaining, parameters = count_flops(pruned, case.size), count_parameters(pruned)
    del model
    gc.collect()
    alike = same_when_loaded(first, name, case)
    second = prune_and_compare(pruned, case.size, seed=1)
    return Row(
        kind, name, count, len(first.structure.groups),
        prunable_share(original, first.structure), 1 - parameters / count,
        first.effect, first.error,
        worst([first.step_error, second.step_error]), second.error,
        remaining < flops and abs(predicted - remaining) < 0.5, alike, first.find_seconds,
        first.prune_seconds, dtype, frozen(first),
    )  # fmt: skip


def same_when_loaded(outcome: Outcome, name: str, case: Case) -> bool:
    """Return True if the saved and reloaded model gives the same outputs, bit for bit."""
    model = outcome.pruner.model
    dtype = next(model.parameters()).dtype
    with tempfile.TemporaryDirectory() as folder:
        save_pruned(model, folder, outcome.pruner.kept)
        loaded = load_pruned(build(name, case).to(dtype), folder)
    x = torch.randn(2, *case.size, dtype=dtype)
    pairs = zip(outputs(model, x), outputs(loaded, x), strict=True)
    return all(torch.equal(saved, reloaded) for saved, reloaded in pairs)


def frozen(outcome: Outcome) -> dict[str, int]:
    """Count frozen layers by reason, without the output layers."""
    reasons = collections.Counter(outcome.structure.frozen.values())
    del reasons["the caller of the model sees its output"]
    return dict(reasons)


def report(rows: list[Row], failed: dict[str, str]) -> str:
    """Return the Markdown page: totals, tables, failures, and frozen layers with the reasons."""
    exact = sum(row.exact for row in rows)
    shares = [row.prunable for row in rows]
    lines = [
        "# Every model of torchvision",
        "",
        "Made by `make zoo`: 30 % random units of every group removed, images small, weights "
        "random. Errors are the largest difference to the masked twin, relative to the largest "
        "value; *effect* is that of the removal itself, on the same scale. *Step* is one training "
        "step (SGD with Nesterov momentum and weight decay, the larger of both rounds), *second* "
        "the output after a second round. A model is *exact* when all errors are below 1e-9 "
        "(in float32: see below), the "
        "FLOPs are what the widths say, and a saved copy loads to the same outputs bit for bit. "
        "*Prunable* is the share of the parameters that belong to a unit that may go.",
        "",
        "Models of more than 150 million parameters are checked in float32 (marked), where outputs "
        "may differ by 1e-4 and a step by 1e-2. That is rounding: in float32 (`python -m "
        "benchmarks.zoo --single regnet_y_32gf`) smaller ones differ as much for their size.",
        "",
        f"**{exact} of {len(rows) + len(failed)} are exact.** Prunable share: smallest "
        f"{min(shares):.0%}, median {statistics.median(shares):.0%}. Finding the groups: median "
        f"{statistics.median(row.find_seconds for row in rows):.2f} s, longest "
        f"{max(row.find_seconds for row in rows):.1f} s.",
    ]
    for kind in dict.fromkeys(row.kind for row in rows):
        lines += ["", f"## {kind}", "", HEAD, "| --- |" + " ---: |" * 10 + " --- |"]
        lines += [line(row) for row in rows if row.kind == kind]
    if failed:
        lines += ["", "## What failed", ""]
        lines += [f"- **{name}**: {error}" for name, error in failed.items()]
    lines += ["", "## What was left alone, and why", "", "Besides the output layers.", ""]
    for row in rows:
        if row.frozen:
            why = "; ".join(f"{count} layers: {why}" for why, count in row.frozen.items())
            lines.append(f"- **{row.model}**: {why}")
    return "\n".join(lines) + "\n"


HEAD = (
    "| model | parameters | groups | prunable | removed | effect | error | step | second | find "
    "| prune | |"
)


def line(row: Row) -> str:
    single = " (float32)" if row.dtype == torch.float32 else ""
    return (
        f"| {row.model}{single} | {row.parameters / 1e6:.1f} M | {row.groups} "
        f"| {row.prunable:.0%} | {row.removed:.0%} | {row.effect:.1e} | {row.error:.0e} "
        f"| {row.step_error:.0e} | {row.second_error:.0e} | {row.find_seconds:.2f} s "
        f"| {row.prune_seconds:.2f} s | {'exact' if row.exact else '**not exact**'} |"
    )


def keep(
    name: str, result: Callable[[], Row], rows: dict[str, Row], failed: dict[str, str], bar: tqdm
) -> None:
    """Store a model's row or its error, so that the remaining models are still checked."""
    try:
        rows[name] = result()
        tqdm.write(line(rows[name]))
    except Exception as error:
        failed[name] = f"{type(error).__name__}: {error}"
        tqdm.write(f"{name} failed: {failed[name]}")
    gc.collect()
    bar.update()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="*", help="names (default: all)")
    parser.add_argument("--jobs", type=int, default=2, help="small models checked at once")
    parser.add_argument("--single", action="store_true", help="check all models in float32")
    parser.add_argument("--output", type=Path, help="a Markdown file")
    wanted = parser.parse_args()
    cases = [
        (kind, name)
        for kind, space in SPACES.items()
        for name in torchvision.models.list_models(module=space)
        if not wanted.models or name in wanted.models
    ]
    small = [
        case for case in cases if parameters_of(case[1]) <= ALONE and not case_of(case[1]).heavy
    ]
    rows, failed = {}, {}
    own_processes = partial(ProcessPoolExecutor, wanted.jobs, get_context("spawn"))
    with tqdm(total=len(cases)) as bar:
        with own_processes(torch.set_num_threads, (1,)) as pool:  # closed before the large ones
            started = {pool.submit(check, *case, wanted.single): case[1] for case in small}
            for done in as_completed(started):
                keep(started[done], done.result, rows, failed, bar)
        for case in cases:
            if case not in small:
                keep(case[1], partial(check, *case, wanted.single), rows, failed, bar)
    text = report([rows[name] for _, name in cases if name in rows], failed)
    if wanted.output is None:
        print(text)
    else:
        wanted.output.write_text(text)
    raise SystemExit(bool(failed) or not all(row.exact for row in rows.values()))


if __name__ == "__main__":
    main()
