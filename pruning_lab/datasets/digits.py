"""Handwritten digits that need no download: scikit-learn's 1797 images of 8x8 pixels."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from pruning_lab.datasets.splits import Images, Splits, part_indices
from pruning_lab.errors import check_count


def digits(
    size: int = 32,
    channels: int = 1,
    train: int | None = None,
    score: int | None = 256,
    val: int | None = 180,
    test: int | None = 360,
    split_seed: int = 0,
) -> Splits:
    """Return ten classes; images are resized bilinearly to ``size``, one grey channel repeated."""
    check_count("dataset.size", size)
    check_count("dataset.channels", channels)
    data = load_digits()
    images = torch.from_numpy(data.images).float()[:, None] * (255 / 16)
    if size != 8:
        images = F.interpolate(images, size=(size, size), mode="bilinear")
    stored = images.round().to(torch.uint8).repeat(1, channels, 1, 1)
    pool = Images(stored, torch.from_numpy(data.target), (0.305,) * channels, (0.376,) * channels)
    sizes = {"train": train, "score": score, "val": val, "test": test}
    parts = part_indices(data.target, sizes, split_seed)
    return Splits.of(
        {name: pool.part(indices) for name, indices in parts.items()},
        num_classes=10,
        input_size=(channels, size, size),
    )
