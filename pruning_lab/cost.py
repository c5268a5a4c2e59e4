"""What a model costs: floating-point operations, parameters, latency."""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pruning_lab.modes import evaluating


def flops(model: nn.Module, input_size: tuple[int, ...]) -> int:
    """Floating-point operations of one sample's forward pass: 2 x multiply-accumulates.

    Matrix products, convolutions and attention are counted (with padding, stride and groups);
    normalisation, activations and pooling are not. ``input_size`` is without the batch dimension.
    """
    return sum(flops_by_module(model, input_size).values())


def flops_by_module(model: nn.Module, input_size: tuple[int, ...]) -> dict[str, int]:
    """The same for every leaf module by its qualified name, in order of definition.

    Functional calls are under ''.
    """
    parameter = next(model.parameters())
    x = torch.zeros(1, *input_size, device=parameter.device, dtype=parameter.dtype)
    with evaluating(model), torch.no_grad(), counting() as counter:
        model(x)
    counts = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    total = counts["Global"]
    names = [name for name, module in model.named_modules() if not list(module.children())]
    root = type(model).__name__
    leaves = {name: counts[f"{root}.{name}"] for name in names if f"{root}.{name}" in counts}
    return leaves | {"": total - sum(leaves.values())}


@contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """Counts the operations inside, those of attention as well."""
    # The counter sees neither nn.MultiheadAttention's fused kernel, which runs in eval mode only,
    # nor every fused kernel of the attention products.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def parameters(model: nn.Module) -> int:
    """How many numbers the model's parameters hold; a shared parameter counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def latency_ms(
    model: nn.Module, input_size: tuple[int, ...], batch_size: int = 1, runs: int = 10
) -> float:
    """Median time of one forward pass in milliseconds, after two passes to warm up."""
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
