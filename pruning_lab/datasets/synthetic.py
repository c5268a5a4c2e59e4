"""Synthetic images, for tests and trials: a random prototype for each class plus noise."""

import torch

from pruning_lab.datasets.splits import Images, Splits, part_indices
from pruning_lab.errors import check_count, check_number


def synthetic(
    classes: int = 4,
    channels: int = 1,
    size: int = 8,
    noise: float = 0.3,
    train: int = 128,
    score: int = 32,
    val: int = 32,
    test: int = 64,
    split_seed: int = 0,
) -> Splits:
    """Return uniform prototypes in [0, 1] plus Gaussian noise of deviation ``noise``, clipped."""
    check_count("dataset.classes", classes, 2)
    sizes = {"train": train, "score": score, "val": val, "test": test}
    for name, count in {"channels": channels, "size": size, **sizes}.items():
        check_count(f"dataset.{name}", count)
    check_number("dataset.noise", noise, lambda deviation: deviation >= 0, "from 0 on")
    labels = torch.arange(train + score + val + test) % classes
    parts = part_indices(labels.numpy(), sizes, split_seed)
    stream = torch.Generator().manual_seed(split_seed)
    prototypes = torch.rand(classes, channels, size, size, generator=stream)
    pictures = prototypes[labels]
    pictures = pictures + noise * torch.randn(pictures.shape, generator=stream)
    stored = (255 * pictures.clamp(0, 1)).round().to(torch.uint8)
    pool = Images(stored, labels, (0.5,) * channels, (0.3,) * channels)
    images = {name: pool.part(indices) for name, indices in parts.items()}
    return Splits(**images, num_classes=classes, input_size=(channels, size, size), targets="class")
