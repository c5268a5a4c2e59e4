"""Measure the cost of a model: floating-point operations, parameters, latency."""

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from math import prod
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from pruning_lab.graph.added_code import added_code, skeleton
from pruning_lab.runtime.model_state import evaluating

Shape = Sequence[int]


@contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """Count the operations inside the block, including attention and recurrent layers."""
    # The counter sees neither nn.MultiheadAttention's fused kernel, which runs in eval mode only,
    # nor every fused kernel of the attention products.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
    try:
        with sdpa_kernel(SDPBackend.MATH), counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _recurrent(x: Shape, weights: Sequence[Shape], *_: Any, **__: Any) -> int:
    """Each step of each sequence, packed or not, is multiplied by each layer's matrices once."""
    return 2 * prod(x[:-1]) * sum(prod(shape) for shape in weights if len(shape) == 2)


aten = torch.ops.aten
FORMULAS: dict[Any, Callable[..., int]] = {
    aten._cudnn_rnn: _recurrent,
    aten.miopen_rnn: _recurrent,
    aten.mkldnn_rnn_layer: lambda x, from_x, from_state, *_, **__: _recurrent(
        x, [from_x, from_state]
    ),
    aten.mv: lambda matrix, vector, **_: 2 * prod(matrix),
    aten.dot: lambda x, y, **_: 2 * prod(x),
    aten.vdot: lambda x, y, **_: 2 * prod(x),
    aten.addmv: lambda added, matrix, vector, **_: 2 * prod(matrix),
    aten.addbmm: lambda added, x, y, **_: 2 * prod(x) * y[-1],
    # nn.Bilinear: each pair of samples is multiplied by the entire weight
    aten._trilinear: lambda x, weight, *_, **__: 2 * x[0] * prod(weight),
    aten._scaled_dot_product_flash_attention_for_cpu: lambda query, key, value, *_, **__: (
        sdpa_flop_count(query, key, value)
    ),
}
"""FLOPs of kernels that torch's counter omits, from the shapes of their arguments.

These kernels run a whole LSTM, GRU or RNN at once, products with vectors, nn.Bilinear, and
attention on the CPU, for code that requests that kernel. Others do the same by matrix products.
"""


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
    x = _blank(model, input_size)
    where = torch.device("meta") if x.is_meta else nullcontext()  # for tensors made in forward
    with evaluating(model), torch.no_grad(), where, counting() as counter:
        model(x)
    counts = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    total = counts.get("Global", 0)  # a model of BatchNorm alone has no entry
    names = [name for name, module in model.named_modules() if not list(module.children())]
    root = type(model).__name__
    leaves = {name: counts[f"{root}.{name}"] for name in names if f"{root}.{name}" in counts}
    return leaves | {"": total - sum(leaves.values())}


def _blank(model: nn.Module, input_size: tuple[int, ...]) -> torch.Tensor:
    """Return one sample of zeros, on the model's device."""
    parameter = next(model.parameters())
    return torch.zeros(1, *input_size, device=parameter.device, dtype=parameter.dtype)


def count_parameters(model: nn.Module) -> int:
    """Count the numbers in the model's parameters; a shared parameter counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def latency_ms(model: nn.Module, input_size: tuple[int, ...], runs: int = 10) -> float:
    """Return the median milliseconds of a sample's forward pass: of ``runs``, after two more."""
    x, times = _blank(model, input_size), []
    with evaluating(model), torch.no_grad():
        for _ in range(runs + 2):
            started = time.perf_counter()
            model(x)
            if x.is_cuda:
                torch.cuda.synchronize(x.device)
            times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times[2:])
