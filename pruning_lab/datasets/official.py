"""torchvision's data sets: read from disk or downloaded; the test split is the official one."""

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torchvision.datasets import VisionDataset

from pruning_lab.datasets.splits import Images, Splits, official_indices
from pruning_lab.errors import UserError, check_count, check_switch, check_text


def obtain(
    dataset: type[VisionDataset], root: str, download: bool, advice: str
) -> tuple[VisionDataset, VisionDataset]:
    """Return the official train and test parts; UserError with ``advice`` if not available."""
    check_text("dataset.root", root, "data")
    check_switch("dataset.download", download)
    name, place = dataset.__name__, Path(root).resolve()
    try:
        return dataset(root, train=True), dataset(root, train=False)
    except Exception as error:  # a damaged file makes the readers raise nearly anything
        if not (isinstance(error, RuntimeError) and "not found" in str(error)):
            raise UserError(
                f"{name} in {place} cannot be read: a file is damaged "
                f"({type(error).__name__}: {error}). Delete its folder there. {advice}"
            ) from error
        if not download:  # "not found": files are missing or have a wrong checksum
            raise UserError(
                f"{name} is not in {place} and dataset.download=false. {advice}"
            ) from None
    try:
        return dataset(root, train=True, download=True), dataset(root, train=False, download=True)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{name} is not in {place} and cannot be downloaded ({reason}). {advice}"
        ) from error


def official_splits(
    official: tuple[VisionDataset, VisionDataset],
    statistics: tuple[tuple[float, ...], tuple[float, ...]],
    sizes: Mapping[str, int | None],
    split_seed: int,
    channels: int | None = None,
    augment: bool = False,
    size: int | None = None,
) -> Splits:
    """Return splits of an ``official`` train and test part.

    ``statistics`` are mean and standard deviation per channel, of values from 0 to 1.
    ``channels=3`` repeats a grey channel; square images are padded with zeros to a larger ``size``.
    """
    mean, std = statistics
    for name, number in {"channels": channels, "size": size}.items():
        if number is not None:
            check_count(f"dataset.{name}", number)
    if channels is not None and channels != len(mean):
        if len(mean) != 1:
            raise UserError(f"dataset.channels={channels} is not possible: these have colours.")
        mean, std = mean * channels, std * channels
    train, test = (_in_memory(part, mean, std, size) for part in official)
    classes = len(train.labels.unique())
    for part in (train, test):
        _check_labels(part, classes)
    parts = official_indices(train.labels.numpy(), test.labels.numpy(), sizes, split_seed)
    return Splits(
        train=train.part(parts["train"], augment),
        score=train.part(parts["score"]),
        val=train.part(parts["val"]),
        test=test.part(parts["test"]),
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
    part: VisionDataset, mean: tuple[float, ...], std: tuple[float, ...], size: int | None
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
