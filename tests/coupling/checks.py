"""One network pruned and compared with its twin: outputs, a training step, a second round."""

import copy
import time
from dataclasses import dataclass

import torch
from torch import nn

from pruning_lab.coupling.structure import Structure, find_structure
from pruning_lab.graph.kinds import Convolution, TransposedConvolution
from pruning_lab.profiling.flops import flops_by_module
from pruning_lab.pruner import Pruner
from pruning_lab.pruner.removal import classes_of_plan
from tests.oracles.twin import Twin, kept_part, random_plan, tensor_of, tensors_in


@dataclass(frozen=True)
class Outcome:
    """Largest differences, relative to the twin's largest output (or largest tensor entry)."""

    error: float  # sliced and twin
    effect: float  # original and twin: what the removal did
    step_error: float  # weights and statistics after one training step, sliced and twin
    pruner: Pruner
    structure: Structure  # before the removal
    classes: torch.Tensor  # that were removed
    find_seconds: float
    prune_seconds: float


def prune_and_compare(model, size, share=0.3, seed=0, batch=4):
    """Remove a random ``share`` of every group of ``model``, which is changed, and compare."""
    stream = torch.Generator().manual_seed(seed)
    dtype = next(model.parameters()).dtype
    x = torch.randn(batch, *size, dtype=dtype, generator=stream)
    optimizer = optimizer_with_momentum(model, stream)
    sliced, sliced_optimizer = copy.deepcopy((model, optimizer))
    pruner = Pruner(sliced, size, "cpu", sliced_optimizer)
    started = time.perf_counter()
    structure = pruner.structure
    found_at = time.perf_counter()
    plan = random_plan(structure, share, seed)
    classes = classes_of_plan(structure, plan)
    original = outputs(model, x)
    prune_from = time.perf_counter()
    pruner.prune_groups(plan)
    pruned_at = time.perf_counter()
    check_that_a_new_search_finds_the_same(pruner)
    twin = Twin(model, structure, classes)
    expected, found = outputs(twin, x), outputs(sliced, x)
    error, effect = difference(found, expected), difference(original, expected)
    train(sliced, sliced_optimizer, x)
    train(twin, optimizer, x)
    tensors = [*sliced.named_parameters(), *sliced.named_buffers()]
    steps = [
        difference([tensor], [kept_part(tensor_of(model, name), name, structure, classes)])
        for name, tensor in tensors
        if tensor.is_floating_point()
    ]
    return Outcome(
        error, effect, worst(steps), pruner, structure, classes,
        found_at - started, pruned_at - prune_from,
    )  # fmt: skip


def optimizer_with_momentum(model, stream):
    """SGD in full swing: its momentum must be sliced with the weights."""
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.01
    )
    for parameter in model.parameters():
        velocity = torch.randn(parameter.shape, dtype=parameter.dtype, generator=stream)
        optimizer.state[parameter]["momentum_buffer"] = 0.01 * velocity
    return optimizer


@torch.no_grad()
def outputs(model, x):
    model.eval()
    return tensors_in(model(x))


def train(model, optimizer, x):
    """One step in training mode, on every output that there is then.

    The logarithm keeps the step small where outputs are large: what diverges magnifies rounding.
    """
    model.train()
    optimizer.zero_grad()
    sum(output.square().mean().log1p() for output in tensors_in(model(x))).backward()
    optimizer.step()
    optimizer.zero_grad()
    model.eval()


def difference(found, expected):
    """The largest difference, relative to the largest expected value of its tensor."""
    return worst(
        ((one - other).abs().max() / other.abs().max().clamp_min(1e-3)).item()
        for one, other in zip(found, expected, strict=True)
    )


def worst(errors):
    """The largest; NaN if one is NaN, which Python's max passes over."""
    return torch.tensor(list(errors), dtype=torch.float64).max().item()


def check_that_a_new_search_finds_the_same(pruner):
    """What is left of the old structure is the structure of what is left."""
    old, new = pruner.structure, find_structure(pruner.model, pruner.input_size)
    # of the last group of a convolution or a GroupNorm single channels may go, and a layer whose
    # units are down to one class has none that can: there the new structure is another one
    last = [each for each in old.follows if each.name in ("groups", "num_groups")]
    if any(getattr(pruner.model.get_submodule(each.module), each.name) == 1 for each in last):
        return
    if any(len(row[row >= 0].unique()) == 1 for row in old.units.values()):
        return
    assert old.groups.keys() == new.groups.keys()
    for name, group in old.groups.items():
        for layer, unit_groups in group.unit_groups.items():
            assert torch.equal(unit_groups, new.groups[name].unit_groups[layer]), layer
    assert old.tensors.keys() == new.tensors.keys()
    for key, row in old.tensors.items():
        assert len(row) == len(new.tensors[key]), key
    for each in new.follows:
        value = getattr(pruner.model.get_submodule(each.module), each.name)
        value = value if each.index is None else value[each.index]
        assert value == len(each.classes) // each.per, each


def predicted_flops(model, size, structure, classes):
    """What is left of a model's FLOPs without ``classes``, from the layers' widths alone.

    A layer's FLOPs go with its units, and with the inputs that each of them reads.
    """
    left = 0
    for name, flops in flops_by_module(model, size).items():
        module = model.get_submodule(name)
        if isinstance(module, nn.Linear | Convolution):
            dim = 0 if isinstance(module, TransposedConvolution) else 1
            rows = [structure.units.get(name)]
            if getattr(module, "groups", 1) == 1:
                rows.append(structure.tensors.get((f"{name}.weight", dim)))
            for row in rows:
                if row is not None:
                    flops = flops * int((~structure.marked(classes)[row]).sum()) / len(row)
        left += flops
    return left


def prunable_share(model, structure):
    """The share of the parameters that belong to a unit that may go."""
    prunable = total = 0
    for name, parameter in model.named_parameters():
        stays = 1.0
        for dim in range(parameter.ndim):
            row = structure.tensors.get((name, dim))
            if row is not None and len(row):
                stays *= (row < 0).float().mean().item()
        total += parameter.numel()
        prunable += parameter.numel() * (1 - stays)
    return prunable / total
