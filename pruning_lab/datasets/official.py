"""torchvision's data sets: a copy is read, else downloaded; the test split stays official."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from pruning_lab.datasets.splits import Images, Splits, part_indices
from pruning_lab.errors import UserError


def obtain(dataset: Callable[..., Any], root: str, download: bool, advice: str) -> tuple[Any, Any]:
    """The official train and test parts; UserError with ``advice`` when they cannot be had."""
    name = getattr(dataset, "__name__", str(dataset))
    try:
        return dataset(root, train=True), dataset(root, train=False)
    except RuntimeError:  # torchvision's word for: not there, or a file whose checksum is wrong
        if not download:
            raise UserError(
                f"{name} is not in {Path(root).resolve()} and dataset.download=false. {advice}"
            ) from None
    try:
        return dataset(root, train=True, download=True), dataset(root, train=False, download=True)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{name} is not in {Path(root).resolve()} and cannot be downloaded ({reason}). {advice}"
        ) from error


def official_splits(
    parts: tuple[Any, Any],
    statistics: tuple[tuple[float, ...], tuple[float, ...]],
    sizes: dict[str, int | None],
    split_seed: int,
    channels: int | None = None,
    augment: bool = False,
    size: int | None = None,
) -> Splits:
    """Splits of an official train and test part.

    ``channels=3`` repeats a grey channel; square images are padded with zeros to a larger ``size``.
    """
    mean, std = statistics
    if channels is not None and channels != len(mean):
        if len(mean) != 1:
            raise UserError(f"dataset.channels={channels} is not possible: these have colours.")
        mean, std = mean * channels, std * channels
    train, test = (_in_memory(part, mean, std, size) for part in parts)
    wanted = {name: sizes[name] for name in ("train", "score", "val")}
    inner = part_indices(train.labels.numpy(), wanted, split_seed)
    outer = np.arange(len(test))
    if sizes["test"] is not None:
        limited = {"test": sizes["test"]}
        outer = part_indices(test.labels.numpy(), limited, split_seed)["test"]
    return Splits(
        train=train.part(inner["train"], augment),
        score=train.part(inner["score"]),
        val=train.part(inner["val"]),
        test=test.part(outer),
        num_classes=int(train.labels.max()) + 1,
        input_size=tuple(train.images.shape[1:]),
    )


def _in_memory(
    part: Any, mean: tuple[float, ...], std: tuple[float, ...], size: int | None
) -> Images:
    images = torch.as_tensor(part.data)
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
    if images.shape[1] != len(mean):
        images = images.repeat(1, len(mean), 1, 1)
    if size is not None and (missing := size - images.shape[-1]) != 0:
        if missing < 0:
            raise UserError(
                f"dataset.size={size} is too small: the images have {images.shape[-1]} pixels a "
                "side, and are padded, not cut."
            )
        before = missing // 2
        images = F.pad(images, (before, missing - before) * 2)
    return Images(images, torch.as_tensor(part.targets), mean, std)
