"""Cost of a pruning step (30 % of the units of all 15 layers of VGG16) against three other ways.

The textbook (tests/oracles/textbook_pruning.py) is the original's algorithm: for each layer the
model runs once, with NaNs in place of the removed units.
"""

import copy
import statistics
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import nn
from tqdm import tqdm

from benchmarks.timing import cpu_seconds
from pruning_lab.coupling.structure import Structure, find_structure
from pruning_lab.graph.kinds import units_of
from pruning_lab.models.vgg import VGG
from pruning_lab.pruner import Pruner
from pruning_lab.pruner.removal import classes_of_plan
from tests.oracles import textbook, textbook_pruning

SHARE, REPEATS, SIZE = 0.3, 9, (1, 32, 32)
STATES = ("weights alone", "and momentum", "and gradients")
"""Tensors that are sliced; each state includes those before it."""

ROWS = {
    "textbook": "textbook loop",
    "peer": "Torch-Pruning: graph, groups and slices",
    "peer's step": "Torch-Pruning: groups and slices",
    "find": "pruning_lab: finding the structure, once a model",
    "step": "**pruning_lab: the pruning step**",
    "floor": "`index_select` of the same tensors",
}
Plan = dict[str, torch.Tensor]
Fresh = tuple[nn.Module, torch.optim.Optimizer]
Seconds = dict[str, float]
Tensors = dict[str, torch.Tensor]


def trained() -> Fresh:
    """Return VGG16 after one step of training, with gradients and momentum."""
    torch.manual_seed(0)
    model = VGG(16, in_channels=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    F.cross_entropy(model(torch.rand(8, *SIZE)), torch.randint(10, (8,))).backward()
    optimizer.step()
    return model, optimizer


def fresh(original: Fresh, state: str) -> Fresh:
    """Copy model and optimizer, with only the tensors that belong to ``state``."""
    model, optimizer = copy.deepcopy(original)
    if state == STATES[0]:
        optimizer.state.clear()
    if state == STATES[2]:
        for mine, theirs in zip(model.parameters(), original[0].parameters(), strict=True):
            mine.grad = None if theirs.grad is None else theirs.grad.clone()
    return model, optimizer


def random_plan(structure: Structure) -> Plan:
    """Choose the units to remove in every layer, as many as Torch-Pruning removes."""
    stream = torch.Generator().manual_seed(0)
    plan = {}
    for name, group in structure.groups.items():
        order = torch.randperm(len(group), generator=stream)
        plan[name] = order[: len(group) - int(len(group) * (1 - SHARE))].sort().values
    return plan


def by_textbook(copied: Fresh, plan: Plan) -> tuple[Seconds, Tensors]:
    model, optimizer = copied
    pairs = [(model.get_submodule(name), units) for name, units in plan.items()]
    x = torch.rand(2, *SIZE)  # two samples, as the original draws them
    spent, _ = cpu_seconds(lambda: textbook_pruning.prune(model, optimizer, pairs, x))
    return {"textbook": spent}, tensors(model, optimizer)


def by_structure(copied: Fresh, plan: Plan) -> tuple[Seconds, Tensors]:
    model, optimizer = copied
    pruner = Pruner(model, SIZE, "cpu", optimizer)
    find, _ = cpu_seconds(lambda: pruner.structure.groups)
    step, _ = cpu_seconds(lambda: pruner.prune_groups(plan))
    return {"find": find, "step": step}, tensors(model, optimizer)


def by_torch_pruning(copied: Fresh, plan: Plan) -> tuple[Seconds, Tensors]:
    """Remove the plan's units by Torch-Pruning and suitable scores; it makes new parameters."""
    model, _ = copied
    output, scores = textbook.chain(model)[-1], {}
    for name, units in plan.items():
        layer = model.get_submodule(name)
        scores[layer] = torch.ones(units_of(layer)).index_fill_(0, units, 0)

    def pruner() -> Any:
        return tp.pruner.BasePruner(
            model,
            (torch.rand(2, *SIZE),),
            importance=lambda group: scores[group[0].dep.target.module],
            pruning_ratio=SHARE,
            ignored_layers=[output],
            # the defaults are dictionaries that all pruners share
            in_channel_groups={},
            out_channel_groups={},
            num_heads={},
            customized_pruners={},
        )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        find, peer = cpu_seconds(pruner)
        step, _ = cpu_seconds(peer.step)
    return {"peer": find + step, "peer's step": step}, tensors(model, None)


def by_index_select(copied: Fresh, plan: Plan) -> tuple[Seconds, Tensors]:
    """Time the slices alone, one after another, with all indices known beforehand."""
    structure, current = find_structure(copied[0], SIZE), tensors(*copied)
    stays = ~structure.marked(classes_of_plan(structure, plan))
    slices = [
        (key, dim, stays[row].nonzero().flatten())
        for (name, dim), row in structure.tensors.items()
        if not stays[row].all()
        for key in (name, f"{name}, gradient", f"{name}, momentum")
        if key in current
    ]
    del copied

    def select() -> None:
        for key, dim, keep in slices:
            current[key] = current[key].index_select(dim, keep)

    spent, _ = cpu_seconds(select)
    return {"floor": spent}, current


def tensors(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> Tensors:
    """Return all tensors that a cut slices, by name; replacing one leaves the model unchanged."""
    by_name = dict(model.state_dict())
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            by_name[f"{name}, gradient"] = parameter.grad
        if optimizer is not None and parameter in optimizer.state:
            by_name[f"{name}, momentum"] = optimizer.state[parameter]["momentum_buffer"]
    return by_name


def check(mine: Tensors, expected: Tensors) -> None:
    """Assert bit equality; tensors that ``mine`` lacks (Torch-Pruning: momentum) are skipped."""
    assert len(mine) >= 70
    for name, tensor in mine.items():
        assert torch.equal(tensor, expected[name]), name


def measured(original: Fresh, plan: Plan, state: str) -> dict[str, list[float]]:
    """Return the seconds of every row, one entry per repeat; the sides alternate."""
    timings: dict[str, list[float]] = defaultdict(list)
    for _ in tqdm(range(REPEATS), desc=f"pruning step, {state}"):
        expected: Tensors = {}
        for side in (by_textbook, by_structure, by_torch_pruning, by_index_select):
            seconds, sliced = side(fresh(original, state), plan)
            expected = expected or sliced
            check(sliced, expected)
            for row, spent in seconds.items():
                timings[row].append(spent)
    return timings


@contextmanager
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def section() -> list[str]:
    """Return the section's lines: medians of all sides, in each state of the optimizer."""
    with one_thread():
        original = trained()
        plan = random_plan(find_structure(original[0], SIZE))
        runs = {state: measured(original, plan, state) for state in STATES}
    medians = {
        state: {row: statistics.median(seconds) for row, seconds in rows.items()}
        for state, rows in runs.items()
    }
    return [
        f"{SHARE:.0%} of the units of {len(plan)} layers. CPU milliseconds on one thread, medians "
        f"of {REPEATS}, the sides in turn, each on a fresh copy of VGG16 "
        "after one step of SGD with momentum. What is left is the same, bit for bit, "
        "on all sides. Sliced are parameters and buffers; in the second column momentum, too (the "
        "optimizer after `zero_grad()`); in the third also the gradients. Making the copies and "
        "choosing the units are not included. An experiment finds the structure once, before its "
        "first step; the groups of what is left are made when they are next asked for, and not "
        "included. The textbook runs the model on two samples for each layer, in eval mode and "
        "without a graph; Torch-Pruning makes new parameters and leaves momentum to the user.",
        "",
        f"| | {' | '.join(STATES)} |",
        f"| --- |{' ---: |' * len(STATES)}",
        *(table_row(label, [medians[s][row] for s in STATES]) for row, label in ROWS.items()),
        ratios("textbook / the pruning step", medians, ("step",)),
        ratios("textbook / finding the structure and the step", medians, ("find", "step")),
        ratios("textbook / `index_select`", medians, ("floor",)),
    ]


def table_row(label: str, seconds: list[float]) -> str:
    return f"| {label} | {' | '.join(f'{1000 * spent:.1f}' for spent in seconds)} |"


def ratios(label: str, medians: dict[str, Seconds], rows: tuple[str, ...]) -> str:
    cells = [state["textbook"] / sum(state[row] for row in rows) for state in medians.values()]
    return f"| {label} | {' | '.join(f'**{cell:.1f}**' for cell in cells)} |"


if __name__ == "__main__":
    print("\n".join(section()))
