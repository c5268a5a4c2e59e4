"""Count floating-point operations while a model runs, whichever kernels it uses."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

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


def _recurrent_layer(x: Shape, from_x: Shape, from_state: Shape, *_: Any, **__: Any) -> int:
    return _recurrent(x, [from_x, from_state])


def _products(x: Shape, y: Shape, *_: Any, **__: Any) -> int:
    """Product of a matrix and a vector, or of two vectors."""
    return 2 * prod(x)


def _with_sum(_: Shape, matrix: Shape, *__: Any, **___: Any) -> int:
    return 2 * prod(matrix)


def _sum_of_products(_: Shape, x: Shape, y: Shape, *__: Any, **___: Any) -> int:
    return 2 * prod(x) * y[-1]


def _bilinear(x: Shape, weight: Shape, y: Shape, *_: Any, **__: Any) -> int:
    """nn.Bilinear: each pair of samples is multiplied by the entire weight."""
    return 2 * x[0] * prod(weight)


def _attention(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


aten = torch.ops.aten
FORMULAS: dict[Any, Any] = {
    aten._cudnn_rnn: _recurrent,
    aten.miopen_rnn: _recurrent,
    aten.mkldnn_rnn_layer: _recurrent_layer,
    aten.mv: _products,
    aten.dot: _products,
    aten.vdot: _products,
    aten.addmv: _with_sum,
    aten.addbmm: _sum_of_products,
    aten._trilinear: _bilinear,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
}
"""Formulas for kernels that torch's counter omits; other kernels do the same by matrix products.

These kernels run a whole LSTM, GRU or RNN at once, products with vectors, nn.Bilinear, and
attention on the CPU, for code that requests that kernel.
"""
