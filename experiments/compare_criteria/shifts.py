"""Test pictures with shifts that a network was not trained on: noise, blur, translation."""

import torch
import torch.nn.functional as F
from torch.utils.data import Dataset, TensorDataset
from torchvision.transforms.functional import gaussian_blur

from pruning_lab.datasets.splits import cut_out, loader

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
    batches = list(loader(dataset, 1000))
    x, targets = (torch.cat(tensors) for tensors in zip(*batches, strict=True))
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(x.shape, generator=draw, dtype=x.dtype)
    corners = 2 * PIXELS * torch.randint(2, (len(x), 2), generator=draw)
    padded = F.pad(x, [PIXELS] * 4, mode="replicate")
    copies = {
        "noise": x + NOISE * x.std() * noise,
        "blur": gaussian_blur(x, [KERNEL, KERNEL], [SIGMA, SIGMA]),
        "translation": cut_out(padded, corners, x.shape[-2:]),
    }
    return {name: TensorDataset(copy, targets) for name, copy in copies.items()}
