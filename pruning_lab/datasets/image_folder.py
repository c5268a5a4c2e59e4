"""A folder of pictures on disk, one sub-folder per class; pictures are read when needed."""

from pathlib import Path

import numpy as np
import torch
from torchvision import datasets
from torchvision.transforms import v2

from pruning_lab.datasets.pictures import Pictures, check_picture, read_picture
from pruning_lab.datasets.splits import Splits, official_indices
from pruning_lab.errors import UserError, check_count, check_switch, check_text, printable

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def image_folder(
    root: str,
    train_folder: str = "train",
    test_folder: str = "test",
    size: int = 224,
    augment: bool = True,
    train: int | None = None,
    score: int | None = 500,
    val: int | None = 1000,
    test: int | None = None,
    split_seed: int = 0,
) -> Splits:
    """Read ``root/train_folder/CLASS/*.jpg`` and ``root/test_folder/CLASS/*.jpg``, as in ImageNet.

    The shorter side is resized to 8/7 of ``size`` and the centre cropped; with ``augment`` the
    training images are randomly cropped and flipped instead. Pictures are normalised by ImageNet's
    mean and deviation, and read as viewers show them: upright, transparent ones on white.
    """
    check_text("dataset.root", root, "data/pictures")
    check_count("dataset.size", size)
    check_switch("dataset.augment", augment)
    fixed = [v2.Resize(size * 8 // 7), v2.CenterCrop(size)]
    varied = [v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()] if augment else fixed
    tuned = _open(root, train_folder, varied)
    plain, held_out = _open(root, train_folder, fixed), _open(root, test_folder, fixed)
    if held_out.classes != plain.classes:
        lone = printable(", ".join(sorted({*held_out.classes} ^ {*plain.classes})[:5]))
        raise UserError(
            f"{root}: {train_folder} and {test_folder} have different classes; only one of them "
            f"has {lone}. Both need a folder for every class."
        )
    if len(plain.classes) < 2:
        raise UserError(
            f"{root} has one class, {printable(plain.classes[0])}; it needs at least two."
        )
    for path, _ in plain.samples + held_out.samples:
        check_picture(path)
    sizes = {"train": train, "score": score, "val": val, "test": test}
    labels, test_labels = np.array(plain.targets), np.array(held_out.targets)
    parts = official_indices(labels, test_labels, sizes, split_seed)
    sources = {"train": tuned, "score": plain, "val": plain, "test": held_out}
    return Splits(
        **{name: Pictures(source, parts[name].tolist()) for name, source in sources.items()},
        num_classes=len(plain.classes),
        input_size=(3, size, size),
        targets="class",
    )


def _open(root: str, folder: str, transforms: list[v2.Transform]) -> datasets.ImageFolder:
    place = Path(root) / folder
    to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    try:
        if not place.is_dir():
            raise UserError(
                f"{place} is not a folder. dataset=image_folder reads "
                "dataset.root/train/CLASS/*.jpg and dataset.root/test/CLASS/*.jpg; "
                "dataset.train_folder and dataset.test_folder give other names."
            )
        return datasets.ImageFolder(
            str(place), v2.Compose([*transforms, *to_tensor]), loader=read_picture
        )
    except OSError as error:  # no classes, a class without pictures, or no permission
        raise UserError(f"{place} cannot be read: {printable(str(error))}") from error
