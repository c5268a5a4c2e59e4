"""Handwritten digits that need no download: scikit-learn's 1797 images of 8x8 pixels."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from pruning_lab.datasets.splits import Images, Splits, part_indices
from pruning_lab.errors import check_count, check_switch

OF_DIGIT = torch.tensor([[d % 2 == 0, d > 4, d in (0, 6, 8, 9)] for d in range(10)]).long()
"""The three labels of each digit."""


def digits(
    size: int = 32,
    channels: int = 1,
    train: int | None = None,
    score: int | None = 256,
    val: int | None = 180,
    test: int | None = 360,
    split_seed: int = 0,
    multilabel: bool = False,
) -> Splits:
    """Return ten classes; images are resized bilinearly to ``size``, one grey channel repeated.

    With ``multilabel`` the same images have three labels instead, 0 or 1 each: the digit is even,
    is larger than 4, has a hole.
    """
    check_switch("dataset.multilabel", multilabel)
    check_count("dataset.size", size)
    check_count("dataset.channels", channels)
    data = load_digits()
    images = torch.from_numpy(data.images).float()[:, None] * (255 / 16)
    if size != 8:
        images = F.interpolate(images, size=(size, size), mode="bilinear")
    stored = images.round().to(torch.uint8).repeat(1, channels, 1, 1)
    digit = torch.from_numpy(data.target)
    targets = OF_DIGIT[digit] if multilabel else digit
    pool = Images(stored, targets, (0.305,) * channels, (0.376,) * channels)
    sizes = {"train": train, "score": score, "val": val, "test": test}
    parts = part_indices(data.target, sizes, split_seed)
    return Splits(
        **{name: pool.part(indices) for name, indices in parts.items()},
        num_classes=3 if multilabel else 10,
        input_size=(channels, size, size),
        targets="labels" if multilabel else "class",
    )
