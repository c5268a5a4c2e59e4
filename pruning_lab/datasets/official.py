"""torchvision's data sets: read from disk or downloaded; the test split is the official one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from pruning_lab.datasets.splits import Images, Splits, part_indices
from pruning_lab.errors import UserError, check_count, check_switch, check_text


def obtain(dataset: Callable[..., Any], root: str, download: bool, advice: str) -> tuple[Any, Any]:
    """Return the official train and test parts; UserError with ``advice`` if not available."""
    name = getattr(dataset, "__name__", str(dataset))
    check_text("dataset.root", root, "data")
    check_switch("dataset.download", download)
    try:
        return dataset(root, train=True), dataset(root, train=False)
    except Exception as error:  # a damaged file makes the readers raise nearly anything
        if not (isinstance(error, RuntimeError) and "not found" in str(error)):
            raise UserError(
                f"{name} in {Path(root).resolve()} cannot be read: a file is damaged "
                f"({type(error).__name__}: {error}). Delete its folder there. {advice}"
            ) from error
        if not download:  # "not found": files are missing or have a wrong checksum
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
    """Return splits of an official train and test part.

    ``statistics`` are mean and standard deviation per channel, of values from 0 to 1.
    ``channels=3`` repeats a grey channel; square images are padded with zeros to a larger ``size``.
    """
    mean, std = statistics
    if channels is not None:
        check_count("dataset.channels", channels)
    if size is not None:
        check_count("dataset.size", size)
    if channels is not None and channels != len(mean):
        if len(mean) != 1:
            raise UserError(f"dataset.channels={channels} is not possible: these have colours.")
        mean, std = mean * channels, std * channels
    train, test = (_in_memory(part, mean, std, size) for part in parts)
    classes = len(train.labels.unique())
    for part in (train, test):
        _check_labels(part, classes)
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
        num_classes=classes,
        input_size=tuple(train.images.shape[1:]),
    )


def _check_labels(part: Images, classes: int) -> None:
    """Raise UserError unless every picture has the label of a class."""
    if len(part.images) != len(part.labels):
        raise UserError(
            f"{len(part.images)} pictures have {len(part.labels)} labels: the files do not belong "
            "together. Delete them and get the data set again."
        )
    wrong = part.labels[(part.labels < 0) | (part.labels >= classes)].unique().tolist()
    if wrong:
        raise UserError(
            f"The labels {wrong[:5]} are none of {classes} classes, 0 to {classes - 1}: a file is "
            "damaged. Delete it and get the data set again."
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
