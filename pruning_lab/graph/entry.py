"""The first layer behind a site that mixes its units: what it gives is a sum over the units."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from pruning_lab import ledger
from pruning_lab.graph.folding import CONVOLUTIONS, can_be_replaced, fused, norm_behind
from pruning_lab.graph.kinds import BatchNorm, Dropout, is_non_linearity
from pruning_lab.graph.parts import part
from pruning_lab.graph.products import product
from pruning_lab.graph.shares import Share, share_of

POOLS: dict[Any, int] = {
    nn.MaxPool1d: 1, nn.MaxPool2d: 2, nn.MaxPool3d: 3,
    nn.AvgPool1d: 1, nn.AvgPool2d: 2, nn.AvgPool3d: 3,
    nn.AdaptiveAvgPool1d: 1, nn.AdaptiveAvgPool2d: 2, nn.AdaptiveAvgPool3d: 3,
    nn.AdaptiveMaxPool1d: 1, nn.AdaptiveMaxPool2d: 2, nn.AdaptiveMaxPool3d: 3,
    F.max_pool1d: 1, F.max_pool2d: 2, F.max_pool3d: 3,
    F.avg_pool1d: 1, F.avg_pool2d: 2, F.avg_pool3d: 3,
    F.adaptive_avg_pool1d: 1, F.adaptive_avg_pool2d: 2, F.adaptive_avg_pool3d: 3,
}  # fmt: skip
"""Pooling, and over how many dimensions: every unit stays by itself."""


WEIGHTS = 16 * 2**20
"""How many bytes the copies of weights may take that contributions need."""


@dataclass(frozen=True)
class Units:
    """What every unit brings to the layer, and what that gives with all of them and with none.

    ``own`` is (samples, units, ...), ``whole`` (samples, ...), ``none`` (1, ...).
    """

    own: torch.Tensor
    whole: torch.Tensor
    none: torch.Tensor


class Entry(ABC):
    """The layer, the operations ``between`` (every unit by itself), and the ``rest`` behind it.

    ``share`` is that of the layer in a pass through the whole network; ``alone`` is the layer
    where ``layer`` computes a BatchNorm behind it as well.

    With the units S the layer gives none + the sum over S of their contributions: when units go one
    after another, each costs its contribution instead of the whole layer.
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
        """What the units of these samples bring; None where the shapes tell of something else."""
        brought = self._between(activation)
        pooled = all(dims == activation.ndim - 2 for dims in self._pools)
        if not (pooled and self._fits(activation, brought)):
            return None
        silent = self._between(torch.zeros_like(activation[:1]))
        units = activation.shape[self._axis]
        own = self._by_unit(brought - silent, units)
        ledger.forward(len(brought) + len(silent), self.share.forward)
        return Units(own, self._layer(brought), self._layer(silent))

    @abstractmethod
    def _fits(self, activation: torch.Tensor, brought: torch.Tensor) -> bool:
        """Whether the layer reads the units as it is thought to."""

    @abstractmethod
    def _by_unit(self, brought: torch.Tensor, units: int) -> torch.Tensor:
        """What is brought as (samples, units, ...)."""

    def contributions(self, own: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        """Of B samples the contributions of the units ``order`` (B, T), (B, T, what it gives)."""
        copied = order.numel() * self._weight.nbytes // own.shape[1]
        if copied <= WEIGHTS or order.numel() == 1:
            ledger.forward(order.numel(), self.share.forward / own.shape[1])
            return self._contributions(own, order, self._weight)
        dim = 0 if len(order) > 1 else 1
        samples = own.chunk(2) if dim == 0 else (own, own)
        halves = zip(samples, order.chunk(2, dim), strict=True)
        return torch.cat([self.contributions(*half) for half in halves], dim)

    def gram(self, own: torch.Tensor) -> torch.Tensor:
        """Inner products of what units bring to the layer alone, (samples, units, units).

        Over all that the layer gives, in float64.
        """
        ledger.forward(len(own), self.share.forward)
        every = torch.arange(own.shape[1], device=own.device).unsqueeze(0)
        found = []
        for sample in own.split(1):
            rows = self._contributions(sample, every, self._alone)[0].flatten(1).double()
            found.append(product(rows, rows.T))
        return torch.stack(found)

    @abstractmethod
    def _contributions(
        self, own: torch.Tensor, order: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        """The same with a copy of the weights that each entry of ``order`` meets."""


class ConvolutionEntry(Entry):
    """Units are channels: one channel's contribution is a convolution of it alone."""

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
        how = (self._layer.stride, self._layer.padding, self._layer.dilation, order.numel())
        convolve = (F.conv1d, F.conv2d, F.conv3d)[weight.ndim - 3]
        return convolve(channels, kernels, None, *how)[0].unflatten(0, (*order.shape, -1))


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
    """``order`` (B, T) as an index for ``own.gather(1, ...)``."""
    return order.view(*order.shape, *[1] * (own.ndim - 2)).expand(*order.shape, *own.shape[2:])


def find_entry(module: fx.GraphModule, axis: int) -> Entry | None:
    """The entry of ``module``, whose first input is the activation at a site; None without one.

    ``axis`` is the dimension of the units. Every operation on the way to the layer must be known to
    leave each unit by itself.
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
            if (norm := norm_behind(module, node)) is not None:
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
    """The kind of entry that a layer is for units that still lie along ``axis``, or flattened."""
    if not isinstance(op, nn.Module):
        return None
    if can_be_replaced(op, (nn.Linear,)):
        return LinearEntry if axis == -1 or flat else None
    if axis == 1 and not flat and can_be_replaced(op, CONVOLUTIONS):
        return ConvolutionEntry if op.groups == 1 and op.padding_mode == "zeros" else None
    return None


def _flattens(op: object, node: fx.Node) -> bool:
    """Whether channels and positions become features: flatten from dimension 1 to the last."""
    if isinstance(op, nn.Flatten):
        return (op.start_dim, op.end_dim) == (1, -1)
    return op in (torch.flatten, "flatten") and node.args[1:] in ((1,), (1, -1))
