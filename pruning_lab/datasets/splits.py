"""Train, score, val, test: disjoint, seeded, stratified; and how batches are read from them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import train_test_split
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    SequentialSampler,
    Subset,
)
from torchvision.datasets import ImageFolder

from pruning_lab.errors import UserError, check_count, check_seed
from pruning_lab.random_streams import seed_all, streams_kept

Indices = dict[str, np.ndarray]


@dataclass(frozen=True)
class Splits:
    """A data set for one experiment: map-style data sets of (float32 image, class).

    ``train`` fits, ``score`` feeds the criteria, ``val`` is for choices, ``test`` for the report.
    ``input_size`` is (channels, height, width).
    """

    train: Dataset
    score: Dataset
    val: Dataset
    test: Dataset
    num_classes: int
    input_size: tuple[int, ...]

    @property
    def in_channels(self) -> int:
        return self.input_size[0]

    def fingerprint(self) -> str:
        """A hash of the samples in all splits: other data, or other parts of it, have another.

        Of pictures on disk it is that of their paths and sizes, not of their pixels. Raises
        UserError for a sample of your own data set that is none of this one's.
        """
        digest = hashlib.sha256()
        for name in ("train", "score", "val", "test"):
            split = getattr(self, name)
            if isinstance(split, Images):
                for tensor in (split.images, split.labels, split.mean, split.std):
                    digest.update(np.ascontiguousarray(tensor.numpy()).data)
            elif isinstance(split, Subset) and isinstance(split.dataset, ImageFolder):
                for index in split.indices:
                    path, label = split.dataset.samples[index]
                    place = Path(path).relative_to(split.dataset.root)
                    digest.update(f"{place} {Path(path).stat().st_size} {label}\n".encode())
            else:
                with streams_kept():
                    seed_all(0)  # of samples that are drawn at random, the same ones
                    for index in range(len(split)):
                        x, y = split[index]
                        self._check_sample(f"Sample {index} of dataset.{name}", x, int(y))
                        digest.update(x.numpy().tobytes() + str(int(y)).encode())
        return digest.hexdigest()[:12]

    def _check_sample(self, name: str, image: torch.Tensor, label: int) -> None:
        if tuple(image.shape) != self.input_size or not image.isfinite().all():
            values = "finite" if image.isfinite().all() else "not all finite"
            raise UserError(
                f"{name} has shape {tuple(image.shape)} and is {values}; every image must be "
                f"finite and of shape {self.input_size}. Leave it out, or put it right."
            )
        if not 0 <= label < self.num_classes:
            raise UserError(
                f"{name} has label {label}; the {self.num_classes} classes have 0 to "
                f"{self.num_classes - 1}."
            )


def part_indices(labels: np.ndarray, sizes: Mapping[str, int | None], seed: int) -> Indices:
    """Disjoint parts of ``sizes``, each with the classes in the proportions of ``labels``.

    The last part is cut off first, so that its samples do not depend on the sizes of the others.
    The first samples of a part are a stratified part again.
    One size may be None: all that is left. Raises UserError for sizes that are not possible.
    """
    check_seed("dataset.split_seed", seed)
    rest = [name for name, size in sizes.items() if size is None]
    if len(rest) > 1:
        raise UserError(
            f"dataset.{' and dataset.'.join(rest)} are null: only one can be all that is left."
        )
    left, parts = np.arange(len(labels)), {}
    last_first = [name for name in reversed(list(sizes)) if name not in rest]
    for number, name in enumerate(last_first + rest):
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
            f"there to be divided, and each part needs at least one of each class."
        )


class Images(Dataset):
    """Images in memory: uint8 (N, C, H, W), normalised channel by channel when they are read.

    Reads one sample, or a whole batch by a list of indices. With ``augment``, each image of a
    batch is shifted by up to 4 pixels (zero padding) and flipped at random, by torch's generator.
    """

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        augment: bool = False,
    ) -> None:
        self.images, self.labels, self.augment = images, labels, augment
        self.mean = torch.tensor(mean).view(-1, 1, 1)
        self.std = torch.tensor(std).view(-1, 1, 1)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int | list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        images = self.images[index]
        if self.augment:
            images = _shift_and_flip(images if images.ndim == 4 else images[None]).view_as(images)
        return (images.float() / 255 - self.mean) / self.std, self.labels[index]

    def part(self, indices: np.ndarray, augment: bool = False) -> "Images":
        """Some of the images."""
        chosen = torch.from_numpy(indices)
        mean, std = tuple(self.mean.flatten().tolist()), tuple(self.std.flatten().tolist())
        return Images(self.images[chosen], self.labels[chosen], mean, std, augment)


def _shift_and_flip(images: torch.Tensor, pad: int = 4) -> torch.Tensor:
    padded = torch.nn.functional.pad(images, (pad, pad, pad, pad))
    height, width = images.shape[2:]
    draws = torch.randint(0, 2 * pad + 1, (len(images), 2)).tolist()
    flips = torch.rand(len(images)) < 0.5
    moved = [
        image[:, y : y + height, x : x + width] for image, (y, x) in zip(padded, draws, strict=True)
    ]
    return torch.where(flips.view(-1, 1, 1, 1), (stacked := torch.stack(moved)).flip(3), stacked)


def loader(
    dataset: Dataset, batch_size: int, generator: torch.Generator | None = None
) -> DataLoader:
    """Batches of a data set: in an order drawn by ``generator``, or one after another without.

    torch's own random stream is left alone.
    """
    count = range(len(dataset))  # type: ignore[arg-type]
    order = RandomSampler(count, generator=generator) if generator else SequentialSampler(count)
    batches, stream = BatchSampler(order, batch_size, False), generator or torch.Generator()
    if isinstance(dataset, Images):
        return DataLoader(dataset, batch_size=None, sampler=batches, generator=stream)
    return DataLoader(dataset, batch_sampler=batches, generator=stream)
