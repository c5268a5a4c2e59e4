"""Counting floating-point operations while a model runs, in whichever kernels it does."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

Shape = Sequence[int]


@contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """Counts the operations inside, those of attention and of recurrent layers as well."""
    # The counter sees neither nn.MultiheadAttention's fused kernel, which runs in eval mode only,
    # nor every fused kernel of the attention products.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    counter = FlopCounterMode(display=False, custom_mapping=RECURRENT)
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


RECURRENT = {
    torch.ops.aten._cudnn_rnn: _recurrent,
    torch.ops.aten.miopen_rnn: _recurrent,
    torch.ops.aten.mkldnn_rnn_layer: _recurrent_layer,
}
"""The kernels that run a whole LSTM, GRU or RNN at once; elsewhere it is matrix products."""
