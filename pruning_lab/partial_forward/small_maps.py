"""Convolutions on small maps as matrix products: the same values, in less time on a CPU.

A convolution is bilinear in map and kernel. Between any two channels it is a number of products,
each of a linear form of the map with a linear form of the kernel, summed with fixed factors. Across
the channels every product is a matrix product, and these take nearly all of the time: fewer are
faster. A 3x3 kernel on a 4x4 map takes 100 products by the definition, 37 here.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

CACHE = 16 * 2**20
"""Most bytes of the products of the rows that are computed at once; more is slower."""

Forms = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""The forms of map and kernel, and the factors in the output; each (products, positions)."""


class Dense(nn.Module):
    """A convolution on maps of one size as one matrix (in * H * W, out * Ho * Wo)."""

    @torch.no_grad()
    def __init__(self, convolution: nn.Conv2d, size: tuple[int, int]) -> None:
        super().__init__()
        weight = convolution.weight
        ones = torch.eye(math.prod(size), dtype=weight.dtype).view(-1, 1, *size)
        images = F.conv2d(ones, weight.flatten(0, 1)[:, None], None, *_steps(convolution))
        by_input = images.unflatten(1, weight.shape[:2]).permute(2, 0, 1, 3, 4)
        self.shape = by_input.shape[2:]
        self.weight = nn.Buffer(by_input.flatten(2).flatten(0, 1))
        self.bias = nn.Buffer(_bias(convolution).expand(self.shape).flatten())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.bias, x.flatten(1), self.weight).view(-1, *self.shape)


class Products(nn.Module):
    """A convolution that keeps the map's size, computed by the products of ``forms``."""

    @torch.no_grad()
    def __init__(self, convolution: nn.Conv2d, forms: Forms) -> None:
        super().__init__()
        inputs, kernels, outputs = (form.to(convolution.weight) for form in forms)
        taps = convolution.weight.permute(2, 3, 1, 0).flatten(0, 1)
        self.weight = nn.Buffer(kernels.new_empty(len(kernels), *taps.shape[1:]))
        for target, source in zip(self.weight.split(32, 1), taps.split(32, 1), strict=True):
            target.copy_((forms[1] @ source.double().flatten(1)).view(target.shape))
        self.inputs, self.outputs = nn.Buffer(inputs), nn.Buffer(outputs)
        self.bias = nn.Buffer(_bias(convolution))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, channels, *size = x.shape
        one_row = len(self.weight) * max(self.weight.shape[1:]) * x.element_size()
        parts = min(rows, math.ceil(rows * one_row / CACHE))
        if parts > 1:
            return torch.cat([self(part) for part in x.chunk(parts)])
        left = self.inputs @ x.reshape(rows * channels, -1).t()
        products = torch.bmm(left.view(-1, rows, channels), self.weight).flatten(1)
        if math.prod(size) < 16:
            # a narrow result takes longer to compute than a flat one and its transposition
            out = (self.outputs.t() @ products).t().contiguous()
        else:
            out = products.t() @ self.outputs
        return out.view(rows, -1, *size).add_(self.bias)


def faster(
    convolution: nn.Module, size: tuple[int, int], most: float = math.inf
) -> Dense | Products | None:
    """Return a module that computes ``convolution`` on maps of this size faster on a CPU, or None.

    It is faster from about 16 rows on; its matrices take at most ``most`` bytes. It holds a copy of
    the present weights, without gradients. In float32 its error is within 2e-6 of the largest
    output (bias excluded). A NaN spreads over its whole map.
    """
    changed = convolution._forward_hooks or convolution._forward_pre_hooks
    if type(convolution) is not nn.Conv2d or changed or "forward" in vars(convolution):
        return None
    dtype, device = convolution.weight.dtype, convolution.weight.device
    if device.type != "cpu" or convolution.groups != 1 or convolution.padding_mode != "zeros":
        return None
    if dtype in (torch.float32, torch.float64):
        return _products(convolution, size, most) or _dense(convolution, size, most)
    # Products would triple the error of bfloat16: the forms would be rounded to it, too
    return _dense(convolution, size, most) if dtype == torch.bfloat16 else None


def _products(convolution: nn.Conv2d, size: tuple[int, int], most: float) -> Products | None:
    (high, wide), (stride, padding, dilation) = convolution.kernel_size, _steps(convolution)
    keeps_size = high % 2 == wide % 2 == 1 and padding in ((high // 2, wide // 2), "same")
    if not keeps_size or stride != (1, 1) or dilation != (1, 1):
        return None
    karatsuba, periods = (*size, high, wide) == (2, 2, 3, 3), _periods(size, (high, wide))
    real = math.prod(2 - period % 2 for period in periods)
    count = 9 if karatsuba else (3 * math.prod(periods) - real) // 2
    inputs, outputs = convolution.in_channels, convolution.out_channels
    written = F.conv2d(torch.ones(1, 1, *size), torch.ones(1, 1, high, wide), padding="same").sum()
    # the forms are narrow matrix products, in which a multiplication takes several times longer
    spent = 3.5 * count * math.prod(size) * (inputs + outputs)
    fits = inputs * outputs * count * convolution.weight.itemsize <= most
    if not fits or inputs * outputs * (written - count) <= spent:
        return None
    return Products(convolution, _karatsuba() if karatsuba else _fourier(size, (high, wide)))


def _dense(convolution: nn.Conv2d, size: tuple[int, int], most: float) -> Dense | None:
    kernel, weight = convolution.kernel_size, convolution.weight
    one = torch.ones(1, 1, *size), torch.ones(1, 1, *kernel)
    written = F.conv2d(*one, None, *_steps(convolution))
    entries = math.prod(size) * written.numel()
    # torch skips the padding: a matrix with many zeros is slower
    pays = math.prod(size) < math.prod(kernel) and written.sum() >= 0.75 * entries
    fits = entries * weight[..., 0, 0].numel() * weight.itemsize <= most
    return Dense(convolution, size) if pays and fits else None


def _karatsuba() -> Forms:
    """Return forms of a 3x3 kernel on a 2x2 map: three products, not four, in each direction."""
    inputs = torch.tensor([[1, 1], [0, 1], [1, 0]]).double()
    kernels = torch.tensor([[0, 1, 0], [0, -1, 1], [1, -1, 0]]).double()
    outputs = torch.tensor([[1, 1], [1, 0], [0, 1]]).double()
    return torch.kron(inputs, inputs), torch.kron(kernels, kernels), torch.kron(outputs, outputs)


def _fourier(size: tuple[int, int], kernel: tuple[int, int]) -> Forms:
    """Return forms with a product per frequency, on a map padded so that only padding wraps around.

    The map is real: one of two conjugate frequencies is enough, by three real products (Gauss).
    """
    periods = _periods(size, kernel)
    waves = _grid(*periods)
    turns = waves * (2 * math.pi) / torch.tensor(periods)
    maps = torch.exp(-1j * (turns @ _grid(*size).t()))
    taps = torch.exp(1j * (turns @ (_grid(*kernel) - torch.tensor(kernel) // 2).t()))
    place = torch.tensor([periods[1], 1]).double()
    number, conjugate = waves @ place, (-waves % torch.tensor(periods)) @ place
    real, pair = number == conjugate, number < conjugate
    a, b, p, q = maps[pair].real, maps[pair].imag, taps[pair].real, taps[pair].imag
    inputs = torch.cat([maps[real].real, a + b, a, b])
    kernels = torch.cat([taps[real].real, p, q - p, p + q])
    outputs = torch.cat([maps[real].real, 2 * (a + b), 2 * b, -2 * a])
    return inputs, kernels, outputs / len(waves)


def _periods(size: tuple[int, int], kernel: tuple[int, int]) -> tuple[int, int]:
    return size[0] + kernel[0] // 2, size[1] + kernel[1] // 2


def _grid(high: int, wide: int) -> torch.Tensor:
    """Return the coordinates (high * wide, 2) of all positions."""
    return torch.cartesian_prod(torch.arange(high), torch.arange(wide)).double()


def _steps(convolution: nn.Conv2d) -> tuple[Any, Any, Any]:
    return convolution.stride, convolution.padding, convolution.dilation


def _bias(convolution: nn.Conv2d) -> torch.Tensor:
    """Return the bias (out, 1, 1), 0 if there is none."""
    if convolution.bias is None:
        return convolution.weight.new_zeros(convolution.out_channels, 1, 1)
    return convolution.bias.detach().clone()[:, None, None]
