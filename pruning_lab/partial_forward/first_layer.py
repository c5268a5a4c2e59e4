"""The first layer after a site that mixes its units: its output is a sum over the units."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pruning_lab.graph.kinds import BatchNorm, Dropout, is_non_linearity
from pruning_lab.partial_forward.folding import CONVOLUTIONS, can_be_replaced, norm_after
from pruning_lab.partial_forward.parts import Share, called, part, share_of
from pruning_lab.profiling import passes

POOLS: dict[Any, int] = {
    nn.MaxPool1d: 1, nn.MaxPool2d: 2, nn.MaxPool3d: 3,
    nn.AvgPool1d: 1, nn.AvgPool2d: 2, nn.AvgPool3d: 3,
    nn.AdaptiveAvgPool1d: 1, nn.AdaptiveAvgPool2d: 2, nn.AdaptiveAvgPool3d: 3,
    nn.AdaptiveMaxPool1d: 1, nn.AdaptiveMaxPool2d: 2, nn.AdaptiveMaxPool3d: 3,
    F.max_pool1d: 1, F.max_pool2d: 2, F.max_pool3d: 3,
    F.avg_pool1d: 1, F.avg_pool2d: 2, F.avg_pool3d: 3,
    F.adaptive_avg_pool1d: 1, F.adaptive_avg_pool2d: 2, F.adaptive_avg_pool3d: 3,
}  # fmt: skip
"""Pooling operations, which treat every unit by itself -> number of spatial dimensions."""

WEIGHTS = 16 * 2**20
"""Most bytes of weights copied to compute contributions at once; larger requests are split."""


def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return left @ right, outside the network: it does not count as part of its passes."""
    return left @ right


@dataclass(frozen=True)
class Units:
    """The units' inputs to the layer, and the layer's outputs with all units and with none.

    ``own`` (samples, units, ...) is each unit's input less its input for an activation of 0;
    ``whole`` is (samples, ...), ``none`` (1, ...).
    """

    own: torch.Tensor
    whole: torch.Tensor
    none: torch.Tensor


@dataclass
class Entry(ABC):
    """A layer, the operations ``between`` site and layer, and the ``rest`` of the model after it.

    The operations between treat every unit, along ``axis`` of the activation, by itself; ``pools``
    are the numbers of spatial dimensions of those that pool. ``share`` is the layer's share of a
    pass through the network; ``alone`` is the layer without the BatchNorm that ``layer`` may
    include.

    With the units S the layer's output is none + the sum of the contributions of S: when units are
    removed one after another, each costs its contribution instead of the whole layer.
    """

    between: fx.GraphModule
    layer: Any
    rest: fx.GraphModule
    axis: int
    pools: Sequence[int]
    share: Share
    alone: Any

    def __post_init__(self) -> None:
        self.share_rest = share_of(self.rest.graph.nodes)
        # (inputs, outputs, kernel...)
        self._weight = self.layer.weight.transpose(0, 1).contiguous()

    def units(self, activation: torch.Tensor) -> Units | None:
        """Return the inputs of these samples' units, or None if the shapes do not fit the layer."""
        brought, silent = self.between(activation), self.between(torch.zeros_like(activation[:1]))
        own = self._by_unit(brought - silent, activation)
        if own is None or any(dims != activation.ndim - 2 for dims in self.pools):
            return None
        passes.forward(len(brought) + len(silent), self.share.forward)
        return Units(own, self.layer(brought), self.layer(silent))

    @abstractmethod
    def _by_unit(self, brought: torch.Tensor, activation: torch.Tensor) -> torch.Tensor | None:
        """Return the layer's input as (samples, units, ...); None unless units lie as expected."""

    def contributions(self, own: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        """Return contributions (B, T, outputs...) of the units ``order`` (B, T) of B samples."""
        copied = order.numel() * self._weight.nbytes // own.shape[1]
        if copied <= WEIGHTS or order.numel() == 1:
            passes.forward(order.numel(), self.share.forward / own.shape[1])
            index = order.view(*order.shape, *[1] * (own.ndim - 2))
            return self._contributions(own.take_along_dim(index, 1), order, self._weight)
        dim = 0 if len(order) > 1 else 1
        samples = own.chunk(2) if dim == 0 else (own, own)
        halves = zip(samples, order.chunk(2, dim), strict=True)
        return torch.cat([self.contributions(*half) for half in halves], dim)

    def gram(self, own: torch.Tensor) -> torch.Tensor:
        """Return inner products of the units' contributions, (samples, units, units), in float64.

        They run over all outputs of the layer, without a BatchNorm that it may include.
        """
        passes.forward(len(own), self.share.forward)
        units = torch.arange(own.shape[1], device=own.device).unsqueeze(0)
        weight, grams = self.alone.weight.transpose(0, 1), []
        for sample in own.split(1):
            rows = self._contributions(sample.contiguous(), units, weight)[0].flatten(1).double()
            grams.append(product(rows, rows.T))
        return torch.stack(grams)

    @abstractmethod
    def _contributions(
        self, own: torch.Tensor, order: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        """Compute ``contributions`` at once from the inputs (B, T, ...) of the units ``order``."""


class ConvolutionEntry(Entry):
    """Units are channels: a channel's contribution is the convolution of this channel alone."""

    def _by_unit(self, brought: torch.Tensor, activation: torch.Tensor) -> torch.Tensor | None:
        same = brought.shape[:2] == activation.shape[:2]
        return brought if same and activation.ndim == brought.ndim == self._weight.ndim else None

    def _contributions(
        self, own: torch.Tensor, order: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        channels = own.flatten(0, 1).unsqueeze(0)
        kernels = weight[order.flatten()].flatten(0, 1).unsqueeze(1)
        settings = (self.layer.stride, self.layer.padding, self.layer.dilation, order.numel())
        convolve = (F.conv1d, F.conv2d, F.conv3d)[weight.ndim - 3]
        return convolve(channels, kernels, None, *settings)[0].unflatten(0, (*order.shape, -1))


class LinearEntry(Entry):
    """Units are features, or channels whose positions were flattened into features."""

    def _by_unit(self, brought: torch.Tensor, activation: torch.Tensor) -> torch.Tensor | None:
        units = activation.shape[self.axis]
        if self.axis == -1:
            fits = brought.shape == activation.shape
            return brought.movedim(-1, 1).reshape(len(brought), units, -1, 1) if fits else None
        fits = brought.ndim == 2 and brought.shape[1] % units == 0
        return brought.unflatten(1, (units, 1, -1)) if fits else None

    def _contributions(
        self, own: torch.Tensor, order: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        weights = weight.unflatten(0, (-1, own.shape[3]))[order]  # (B, T, positions, outputs)
        return own @ weights  # own: (B, T, tokens, positions)


def find_entry(module: fx.GraphModule, axis: int) -> Entry | None:
    """Return the entry of ``module``, whose first input is the activation at a site, or None.

    ``axis`` is the dimension of the units. Every operation before the layer must be known to treat
    each unit by itself.
    """
    given = [node for node in module.graph.nodes if node.op == "placeholder"]
    site = last = given[0]
    pools: list[int] = []
    flat = False
    while len(last.users) == 1:
        node = next(iter(last.users))
        if node.op == "output" or node.all_input_nodes != [last]:
            return None
        op = called(module, node)
        dims = POOLS.get(type(op) if isinstance(op, nn.Module) else op)
        if (kind := _entry_at(op, axis, flat)) is not None:
            wanted, reached = next(iter(reversed(module.graph.nodes))).args[0], node
            alone = op
            if (norm := norm_after(module, node)) is not None:
                op, reached = fuse_conv_bn_eval(op, called(module, norm)), norm
            rest = part(module, [reached, *given[1:]], wanted)
            between = part(module, [site], last)
            return kind(between, op, rest, axis, pools, share_of([node]), alone)
        if axis == 1 and not flat and dims is not None:
            pools.append(dims)
        elif axis == 1 and not flat and _flattens(op, node):
            flat = True
        elif not (isinstance(op, BatchNorm | Dropout | nn.Identity) or is_non_linearity(op)):
            return None
        last = node
    return None


def _entry_at(op: Any, axis: int, flat: bool) -> type[Entry] | None:
    """Return the Entry class for a layer whose units lie along ``axis`` or are flattened."""
    if can_be_replaced(op, (nn.Linear,)):
        return LinearEntry if axis == -1 or flat else None
    if axis == 1 and not flat and can_be_replaced(op, CONVOLUTIONS):
        return ConvolutionEntry if op.groups == 1 and op.padding_mode == "zeros" else None
    return None


def _flattens(op: object, node: fx.Node) -> bool:
    """Return whether channels and positions become features: flatten from dimension 1 on."""
    if isinstance(op, nn.Flatten):
        return (op.start_dim, op.end_dim) == (1, -1)
    return op in (torch.flatten, "flatten") and node.args[1:] in ((1,), (1, -1))
