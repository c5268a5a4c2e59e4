"""Disjoint, seeded, stratified splits (train, score, val, test), and loaders of their batches."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.model_selection import train_test_split
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
)

from pruning_lab.datasets.pictures import Pictures
from pruning_lab.datasets.samples import TARGETS, Contents, check_apart, length, python_number, read
from pruning_lab.errors import UserError, check_choice, check_count, check_seed

Indices = dict[str, np.ndarray]

SHIFT = 4
"""Largest shift of an augmented image in pixels, in each direction."""


@dataclass(frozen=True)
class Splits:
    """A data set for one experiment: map-style data sets of (float32 input, target).

    ``train`` is for training, ``score`` for the criteria, ``val`` for choices, ``test`` for the
    report. ``input_size`` is the shape of an input, (channels, height, width) of an image;
    ``num_classes`` is the number of classes, of labels or of numbers in a target, and ``targets``
    says which of these they are (``datasets.TARGETS``). All samples are read and checked when the
    fingerprint is computed, before any work.
    """

    train: Dataset
    score: Dataset
    val: Dataset
    test: Dataset
    num_classes: int
    input_size: tuple[int, ...]
    targets: str = "class"

    def __post_init__(self) -> None:
        sizes = self.input_size
        check_choice("targets", self.targets, TARGETS)
        if not isinstance(sizes, Sequence) or isinstance(sizes, str) or not sizes:
            raise UserError(
                f"input_size={sizes} is not possible; it is the shape of an image, (1, 28, 28) for "
                "example."
            )
        shape = tuple(_whole("input_size", size, 1) for size in sizes)
        object.__setattr__(self, "input_size", shape)
        least = 2 if self.targets == "class" else 1
        object.__setattr__(self, "num_classes", _whole("num_classes", self.num_classes, least))

    @property
    def in_channels(self) -> int:
        return self.input_size[0]

    def fingerprint(self, first: int | None = None) -> str:
        """Return a hash of the samples in all splits, or of the ``first`` of each.

        Other data, or other parts of it, have another hash; of pictures on disk the files' contents
        are hashed. Raises UserError for samples that are invalid or change between reads, and, if
        all samples are read, for a split that is contained in another.
        """
        splits = {"train": self.train, "score": self.score, "val": self.val, "test": self.test}
        counts = {name: length(name, split) for name, split in splits.items()}
        digest, contents = hashlib.sha256(), {}
        for name, split in splits.items():
            count = min(counts[name], first or counts[name])
            contents[name] = self._contents(name, split, count)
            digest.update(f"{name} {count}".encode())
            for part in contents[name].whole:
                digest.update(part)
        if first is None:
            check_apart(contents)
        return digest.hexdigest()[:12]

    def _contents(self, name: str, split: Dataset, count: int) -> Contents:
        if type(split) is Pictures:
            return split.contents(name, count)
        if (
            type(split) is Images
            and self.targets == "class"
            and split.fits(self.num_classes, self.input_size)
        ):
            return split.contents(count)
        return read(name, split, count, self.input_size, self.targets, self.num_classes)


class Samples(Dataset):
    """Samples in memory: ``inputs`` (N, ...), float32, and ``targets`` (N, ...).

    Reads one sample, or a batch by a list of indices.
    """

    def __init__(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int | list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        return self.inputs[index], self.targets[index]


def _whole(name: str, value: Any, least: int) -> int:
    """Return an integer, also numpy's or torch's, as Python's int; UserError below ``least``."""
    number = value if isinstance(value, bool) else python_number(value)
    check_count(name, number, least)
    return number


def part_indices(labels: np.ndarray, sizes: Mapping[str, int | None], seed: int) -> Indices:
    """Return disjoint parts of ``sizes``, each with the class proportions of ``labels``.

    The last part is drawn first, so that its samples do not depend on the sizes of the others. The
    first samples of a part are stratified, too. One size may be None: all remaining samples. Raises
    UserError for sizes that are not possible.
    """
    check_seed("dataset.split_seed", seed)
    unsized = [name for name, size in sizes.items() if size is None]
    if len(unsized) > 1:
        raise UserError(
            f"dataset.{' and dataset.'.join(unsized)} are null: only one can get all that remains."
        )
    left, parts = np.arange(len(labels)), {}
    last_first = [name for name in reversed(list(sizes)) if name not in unsized]
    for number, name in enumerate(last_first + unsized):
        size = sizes[name]
        if size is not None:
            check_count(f"dataset.{name}", size)
        if size is None or size == len(left):
            parts[name], left = left, left[:0]
            continue
        _check_size(name, size, np.unique(labels[left], return_counts=True)[1])
        left, parts[name] = train_test_split(
            left, test_size=size, stratify=labels[left], random_state=seed + number
        )
    empty = [name for name, part in parts.items() if not len(part)]
    if empty:
        raise UserError(
            f"Nothing is left for dataset.{empty[0]}: the other parts take all {len(labels)} "
            "samples. Make them smaller."
        )
    return {name: _classes_in_turn(part, labels, seed) for name, part in parts.items()}


def official_indices(
    labels: np.ndarray, test_labels: np.ndarray, sizes: Mapping[str, int | None], seed: int
) -> Indices:
    """Return train, score and val of the official training part, and test of the official test."""
    inner = {name: size for name, size in sizes.items() if name != "test"}
    parts = part_indices(labels, inner, seed)
    if sizes["test"] is None:
        return parts | {"test": np.arange(len(test_labels))}
    return parts | part_indices(test_labels, {"test": sizes["test"]}, seed)


def _classes_in_turn(part: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    shuffled = np.random.default_rng(seed).permutation(part)
    of_class = pd.Series(labels[shuffled]).groupby(labels[shuffled])
    turn = (of_class.cumcount() + 0.5) / of_class.transform("size")
    return shuffled[np.argsort(turn.to_numpy(), kind="stable")]


def _check_size(name: str, size: int, counts: np.ndarray) -> None:
    left, classes = counts.sum(), len(counts)
    if size < classes or left - size < classes or counts.min() < 2:
        raise UserError(
            f"dataset.{name}={size} is not possible: {left} samples of {classes} classes are "
            f"left to divide, and each part needs at least one of each class."
        )


class Images(Dataset):
    """``images`` in memory, uint8 (N, C, H, W), with ``labels`` (N, ...).

    Reads one sample, or a whole batch by a list of indices: images divided by 255, less ``mean``,
    divided by ``std`` (one number for each channel, or one for all). With ``augment``, each image
    of a batch is shifted by up to 4 pixels (zero padding) and flipped at random, by torch's
    generator.
    """

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        mean: Sequence[float] | torch.Tensor,
        std: Sequence[float] | torch.Tensor,
        augment: bool = False,
    ) -> None:
        self.images, self.labels, self.augment = images, labels, augment
        self.mean = torch.as_tensor(mean).view(-1, 1, 1)
        self.std = torch.as_tensor(std).view(-1, 1, 1)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int | list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        images = self.images[index]
        if self.augment:
            images = _shift_and_flip(images if images.ndim == 4 else images[None]).view_as(images)
        return (images.float() / 255 - self.mean) / self.std, self.labels[index]

    def fits(self, num_classes: int, input_size: tuple[int, ...]) -> bool:
        """Return whether all samples are valid for such a data set, by checks of whole tensors."""
        images, labels = self.images, self.labels
        return (
            images.dtype == torch.uint8
            and labels.dtype == torch.int64
            and tuple(images.shape) == (*labels.shape, *input_size)
            and bool(((labels >= 0) & (labels < num_classes)).all())
            and {len(self.mean), len(self.std)} <= {1, len(images[0])}
            and bool(self.mean.isfinite().all() and (1 / self.std).isfinite().all())
            and {images.device.type, labels.device.type} == {"cpu"}
        )

    def contents(self, count: int) -> Contents:
        """Return the contents of the first ``count`` samples."""
        tensors = (self.images[:count], self.labels[:count], self.mean, self.std)
        arrays = [np.ascontiguousarray(tensor.numpy()) for tensor in tensors]
        keys = [hashlib.sha256(image).digest() for image in arrays[0]]
        places = [(id(self), index) for index in range(count)]
        return Contents([array.data for array in arrays], keys, places)

    def part(self, indices: np.ndarray, augment: bool = False) -> "Images":
        """Return the images ``indices``, with or without augmentation."""
        return Images(self.images[indices], self.labels[indices], self.mean, self.std, augment)


def _shift_and_flip(images: torch.Tensor) -> torch.Tensor:
    corners = torch.randint(0, 2 * SHIFT + 1, (len(images), 2))
    flips = torch.rand(len(images)) < 0.5
    moved = cut_out(F.pad(images, [SHIFT] * 4), corners, images.shape[2:])
    return torch.where(flips.view(-1, 1, 1, 1), moved.flip(3), moved)


def cut_out(images: torch.Tensor, corners: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Cut a part of ``size`` out of each image, whose upper left pixel is at its (row, column)."""
    height, width = size
    parts = [
        image[:, y : y + height, x : x + width]
        for image, (y, x) in zip(images, corners.tolist(), strict=True)
    ]
    return torch.stack(parts)


def loader(
    dataset: Dataset, batch_size: int, generator: torch.Generator | None = None
) -> DataLoader:
    """Return batches of at most ``batch_size`` samples of ``dataset``: (inputs, targets), or
    whatever its samples are: several inputs and a target, dictionaries.

    The order is drawn by ``generator``; without it, it is that of the data set. torch's global
    random stream is not used.
    """
    count = range(len(dataset))  # type: ignore[arg-type]
    order = RandomSampler(count, generator=generator) if generator else SequentialSampler(count)
    batches, stream = BatchSampler(order, batch_size, False), generator or torch.Generator()
    if type(dataset) in (Images, Samples):  # reads a batch at once; a subclass may not
        return DataLoader(dataset, batch_size=None, sampler=batches, generator=stream)
    return DataLoader(dataset, batch_sampler=batches, generator=stream, collate_fn=_batch)


def _batch(samples: Sequence[Any]) -> Any:
    """Stack samples to a batch; integer targets of any kind become int64, as losses need.

    Samples that are no pairs of a tensor and a target are stacked as torch does by default.
    """
    first = samples[0]
    if not (isinstance(first, tuple | list) and len(first) == 2 and torch.is_tensor(first[0])):
        return default_collate(list(samples))
    images, targets = zip(*samples, strict=True)
    plain = [image.as_subclass(torch.Tensor) for image in images]
    return torch.stack(plain), default_collate([python_number(target) for target in targets])
