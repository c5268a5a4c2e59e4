"""The first layer after a site that mixes its units: its output is a sum over the units."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from pruning_lab.graph.kinds import BatchNorm, Dropout, is_non_linearity
from pruning_lab.graph.parts import part
from pruning_lab.partial_forward.folding import CONVOLUTIONS, can_be_replaced, fused, norm_after
from pruning_lab.partial_forward.products import product
from pruning_lab.partial_forward.shares import Share, share_of
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


@dataclass(frozen=True)
class Units:
    """The units' inputs to the layer, and the layer's outputs with all units and with none.

    ``own`` (samples, units, ...) is each unit's input less its input for an activation of 0;
    ``whole`` is (samples, ...), ``none`` (1, ...).
    """

    own: torch.Tensor
    whole: torch.Tensor
    none: torch.Tensor


class Entry(ABC):
    """A layer, the operations ``between`` site and layer, and the ``rest`` of the model after it.

    The operations between treat every unit by itself. ``share`` is the layer's share of a pass
    through the network; ``alone`` is the layer without the BatchNorm that ``layer`` may include.

    With the units S the layer's output is none + the sum of the contributions of S: when units are
    removed one after another, each costs its contribution instead of the whole layer.
    """

    def __init__(
        self,
        between: fx.GraphModule,
        layer: Any,
        rest: fx.GraphModule,
        axis: int,
        pools: Sequence[int],
        share: Share,
        alone: Any,
    ) -> None:
        self.rest, self.share = rest, share
        self.share_rest = share_of(rest.graph.nodes)
        self._between, self._layer, self._axis, self._pools = between, layer, axis, pools
        self._weight = layer.weight.transpose(0, 1).contiguous()  # (inputs, outputs, kernel...)
        self._alone = alone.weight.transpose(0, 1)

    def units(self, activation: torch.Tensor) -> Units | None:
        """Return the inputs of these samples' units, or None if the shapes do not fit the layer."""
        brought = self._between(activation)
        pooled = all(dims == activation.ndim - 2 for dims in self._pools)
        if not (pooled and self._fits(activation, brought)):
            return None
        silent = self._between(torch.zeros_like(activation[:1]))
        units = activation.shape[self._axis]
        inputs = self._by_unit(brought - silent, units)
        passes.forward(len(brought) + len(silent), self.share.forward)
        return Units(inputs, self._layer(brought), self._layer(silent))

    @abstractmethod
    def _fits(self, activation: torch.Tensor, brought: torch.Tensor) -> bool:
        """Return whether ``brought``, the layer's input, has the expected layout of units."""

    @abstractmethod
    def _by_unit(self, brought: torch.Tensor, units: int) -> torch.Tensor:
        """Return the layer's input as (samples, units, ...)."""

    def contributions(self, own: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        """Return contributions (B, T, outputs...) of the units ``order`` (B, T) of B samples."""
        copied = order.numel() * self._weight.nbytes // own.shape[1]
        if copied <= WEIGHTS or order.numel() == 1:
            passes.forward(order.numel(), self.share.forward / own.shape[1])
            return self._contributions(own, order, self._weight)
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
        grams = []
        for sample in own.split(1):
            rows = self._contributions(sample, units, self._alone)[0].flatten(1).double()
            grams.append(product(rows, rows.T))
        return torch.stack(grams)

    @abstractmethod
    def _contributions(
        self, own: torch.Tensor, order: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        """Compute ``contributions`` at once, copying the weights for each entry of ``order``."""


class ConvolutionEntry(Entry):
    """Units are channels: a channel's contribution is the convolution of this channel alone."""

    def _fits(self, activation: torch.Tensor, brought: torch.Tensor) -> bool:
        same = brought.shape[:2] == activation.shape[:2]
        return same and activation.ndim == brought.ndim == self._weight.ndim

    def _by_unit(self, brought: torch.Tensor, units: int) -> torch.Tensor:
        return brought

    def _contributions(
        self, own: torch.Tensor, order: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        channels = own.gather(1, _like(order, own)).flatten(0, 1).unsqueeze(0)
        kernels = weight[order.flatten()].flatten(0, 1).unsqueeze(1)
        settings = (self._layer.stride, self._layer.padding, self._layer.dilation, order.numel())
        convolve = (F.conv1d, F.conv2d, F.conv3d)[weight.ndim - 3]
        return convolve(channels, kernels, None, *settings)[0].unflatten(0, (*order.shape, -1))


class LinearEntry(Entry):
    """Units are features, or channels whose positions were flattened into features."""

    def _fits(self, activation: torch.Tensor, brought: torch.Tensor) -> bool:
        if self._axis == -1:
            return brought.shape == activation.shape
        return brought.ndim == 2 and brought.shape[1] % activation.shape[1] == 0

    def _by_unit(self, brought: torch.Tensor, units: int) -> torch.Tensor:
        if self._axis == 1:
            return brought.unflatten(1, (units, 1, -1))
        return brought.movedim(-1, 1).reshape(len(brought), units, -1, 1)

    def _contributions(
        self, own: torch.Tensor, order: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        features = own.gather(1, _like(order, own))  # (B, T, tokens, positions)
        weights = weight.unflatten(0, (-1, own.shape[3]))[order]  # (B, T, positions, outputs)
        return features @ weights


def _like(order: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Expand ``order`` (B, T) to an index for ``own.gather(1, ...)``."""
    return order.view(*order.shape, *[1] * (own.ndim - 2)).expand(*order.shape, *own.shape[2:])


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
        op = module.get_submodule(str(node.target)) if node.op == "call_module" else node.target
        dims = POOLS.get(type(op) if isinstance(op, nn.Module) else op)
        if (kind := _entry_at(op, axis, flat)) is not None:
            wanted, reached = next(iter(reversed(module.graph.nodes))).args[0], node
            alone = op
            if (norm := norm_after(module, node)) is not None:
                op, reached = fused(op, module.get_submodule(str(norm.target))), norm
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


def _entry_at(op: object, axis: int, flat: bool) -> type[Entry] | None:
    """Return the Entry class for a layer whose units lie along ``axis`` or are flattened."""
    if not isinstance(op, nn.Module):
        return None
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
