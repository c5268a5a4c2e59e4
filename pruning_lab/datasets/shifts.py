"""Test pictures with shifts that a network was not trained on: noise, blur, translation."""

from collections.abc import Callable

import torch
from torch.utils.data import Dataset, TensorDataset
from torchvision.transforms.functional import gaussian_blur

from pruning_lab.datasets.splits import loader

NOISE = 0.5
"""Standard deviation of the noise, in standard deviations of all pixels of the data set."""

SIGMA, KERNEL = 1.0, 5
"""Width of the blur, and size of its kernel, in pixels."""

PIXELS = 2
"""Translation in pixels, vertically and horizontally; the edge pixels are repeated."""


def shifted(dataset: Dataset) -> dict[str, TensorDataset]:
    """Return copies of a data set in memory: ``noise``, ``blur`` and ``translation``.

    Random numbers depend only on the number of pictures and their size.
    """
    parts = list(loader(dataset, 1000))
    x, targets = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    kinds: dict[str, Callable[[torch.Tensor, torch.Generator], torch.Tensor]] = {
        "noise": _noise, "blur": _blur, "translation": _translation,
    }  # fmt: skip
    draw = torch.Generator().manual_seed(0)
    return {name: TensorDataset(kind(x, draw), targets) for name, kind in kinds.items()}


def _noise(x: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    return x + NOISE * x.std() * torch.randn(x.shape, generator=draw, dtype=x.dtype)


def _blur(x: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    blurred: torch.Tensor = gaussian_blur(x, [KERNEL, KERNEL], [SIGMA, SIGMA])
    return blurred


def _translation(x: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    padded = torch.nn.functional.pad(x, [PIXELS] * 4, mode="replicate")
    height, width = x.shape[-2:]
    corners = 2 * PIXELS * torch.randint(2, (len(x), 2), generator=draw)
    rows = corners[:, :1] + torch.arange(height)
    columns = corners[:, 1:] + torch.arange(width)
    samples = torch.arange(len(x))[:, None, None]
    return padded.movedim(1, -1)[samples, rows[:, :, None], columns[:, None]].movedim(-1, 1)
