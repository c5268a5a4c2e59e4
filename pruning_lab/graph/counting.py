"""Counting floating-point operations while a model runs, in whichever kernels it does."""

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
    """Counts the operations inside, those of attention and of recurrent layers as well."""
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
    """Every step of every sequence, packed or not, meets every matrix of every layer once."""
    return 2 * prod(x[:-1]) * sum(prod(shape) for shape in weights if len(shape) == 2)


def _recurrent_layer(x: Shape, from_x: Shape, from_state: Shape, *_: Any, **__: Any) -> int:
    return _recurrent(x, [from_x, from_state])


def _products(x: Shape, y: Shape, *_: Any, **__: Any) -> int:
    """A matrix and a vector, or two vectors."""
    return 2 * prod(x)


def _with_sum(_: Shape, matrix: Shape, *__: Any, **___: Any) -> int:
    return 2 * prod(matrix)


def _sum_of_products(_: Shape, x: Shape, y: Shape, *__: Any, **___: Any) -> int:
    return 2 * prod(x) * y[-1]


def _bilinear(x: Shape, weight: Shape, y: Shape, *_: Any, **__: Any) -> int:
    """nn.Bilinear: every sample of both inputs meets the whole weight."""
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
"""What torch's own counter leaves out; elsewhere these are matrix products.

The kernels that run a whole LSTM, GRU or RNN at once, products with vectors, nn.Bilinear, and the
attention kernel of the CPU, for code that asks for it.
"""
