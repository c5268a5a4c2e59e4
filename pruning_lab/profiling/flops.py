"""Measure the cost of a model: floating-point operations, parameters, latency."""

import copy
import statistics
import time
from contextlib import nullcontext

import torch
from torch import nn

from pruning_lab.graph.added_code import added_code
from pruning_lab.graph.skeleton import skeleton
from pruning_lab.profiling.counting import counting
from pruning_lab.runtime.model_state import evaluating


def count_flops(model: nn.Module, input_size: tuple[int, ...]) -> int:
    """Count floating-point operations of one sample's forward pass: 2 x multiply-accumulates.

    Matrix products, convolutions and attention are counted (with padding, stride and groups);
    normalisation, activations and pooling are not. ``input_size`` is without the batch dimension.
    If the model can run on the meta device nothing is computed; the count is the same.
    """
    return sum(flops_by_module(model, input_size).values())


def flops_by_module(model: nn.Module, input_size: tuple[int, ...]) -> dict[str, int]:
    """Return FLOPs by leaf module's full name, in order of definition; '': functional calls."""
    try:
        return _counted(_light(model), input_size)
    except Exception:  # the user's code may need values; any other error is raised again here
        return _counted(model, input_size)


def copy_to_count(model: nn.Module, input_size: tuple[int, ...]) -> nn.Module:
    """Return a copy for counting FLOPs: on the meta device if it can run there, else a full one."""
    try:
        light = _light(model)
        _counted(light, input_size)
    except Exception:  # as above
        return copy.deepcopy(model)
    return copy.deepcopy(model) if light is model else light


def _light(model: nn.Module) -> nn.Module:
    """Return a copy on the meta device, or the model itself if it is there or would lose code."""
    on_meta = all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    return model if on_meta or added_code(model) else skeleton(model)


def _counted(model: nn.Module, input_size: tuple[int, ...]) -> dict[str, int]:
    parameter = next(model.parameters())
    x = torch.zeros(1, *input_size, device=parameter.device, dtype=parameter.dtype)
    where = torch.device("meta") if x.is_meta else nullcontext()  # for tensors made in forward
    with evaluating(model), torch.no_grad(), where, counting() as counter:
        model(x)
    counts = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    total = counts.get("Global", 0)  # a model of BatchNorm alone has no entry
    names = [name for name, module in model.named_modules() if not list(module.children())]
    root = type(model).__name__
    leaves = {name: counts[f"{root}.{name}"] for name in names if f"{root}.{name}" in counts}
    return leaves | {"": total - sum(leaves.values())}


def count_parameters(model: nn.Module) -> int:
    """Count the numbers in the model's parameters; a shared parameter counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def latency_ms(
    model: nn.Module, input_size: tuple[int, ...], batch_size: int = 1, runs: int = 10
) -> float:
    """Return the median time of ``runs`` forward passes in milliseconds, after two to warm up."""
    parameter = next(model.parameters())
    x = torch.zeros(batch_size, *input_size, device=parameter.device, dtype=parameter.dtype)
    times = []
    with evaluating(model), torch.no_grad():
        for _ in range(runs + 2):
            started = time.perf_counter()
            model(x)
            if x.is_cuda:
                torch.cuda.synchronize(x.device)
            times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times[2:])
