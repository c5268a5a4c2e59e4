"""Read and check every sample of a data set before any work is done."""

import hashlib
import operator
from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations, permutations
from logging import getLogger
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import IterableDataset, Subset
from tqdm import tqdm

from pruning_lab.errors import UserError
from pruning_lab.runtime import distributed
from pruning_lab.runtime.random_streams import seed_all, streams_kept

log = getLogger(__name__)

TWICE = 32
"""Number of samples of a split that are read a second time, to check that they are the same."""

TARGETS = {
    "class": "one class a sample",
    "labels": "0 or 1 for each of several labels",
    "numbers": "one or more numbers a sample",
}
"""Kinds of targets, and how they are called in messages."""


class Contents(NamedTuple):
    """The contents of the samples of a split.

    ``whole`` determines all of it. ``images`` has a key for each image: equal images have equal
    keys. ``places`` says where each image is read from, for images that vary between reads.
    """

    whole: Sequence[bytes | memoryview]
    images: Sequence[Hashable]
    places: Sequence[Hashable]


def length(name: str, split: Any) -> int:
    """Return the number of samples of a split; UserError if it is unknown or too small."""
    if isinstance(split, IterableDataset) or not (
        hasattr(split, "__len__") and hasattr(split, "__getitem__")
    ):
        raise UserError(
            f"dataset.{name} is {described(split)}, which has no samples by number. Give a data "
            "set with __len__() and __getitem__(index)."
        )
    try:
        count = len(split)
    except Exception as error:  # a user's code may raise anything
        raise UserError(
            f"The length of dataset.{name} cannot be told: {reason(error)}. Give its data set a "
            "__len__() that returns the number of samples."
        ) from error
    least = 2 if name == "train" else 1  # BatchNorm cannot normalise a lone sample
    if count < least:
        raise UserError(f"dataset.{name} has {count} samples; it needs at least {least}.")
    return count


def read(
    name: str, split: Any, count: int, input_size: tuple[int, ...], kind: str, width: int
) -> Contents:
    """Return the contents of the first ``count`` samples of a split.

    Raises UserError for the first that is not a valid (float32 input, target), and if one of the
    first ``TWICE`` changes when it is read again with the same seeds. ``kind`` is one of
    ``TARGETS``, ``width`` the number of classes, of labels or of numbers in a target.
    """

    def key(index: int) -> bytes:
        who = f"Sample {index} of dataset.{name}"
        image, target = _checked(who, _sample(who, split, index), input_size, kind, width)
        return hashlib.sha256(image.contiguous().numpy().data).digest() + str(target).encode()

    about = {"unit": "sample", "disable": distributed.silent(), "leave": False}
    with streams_kept():
        seed_all(0)  # random samples are then the same in both readings
        keys = [key(index) for index in tqdm(range(count), f"Reading dataset.{name}", **about)]
        seed_all(0)
        for index in range(min(count, TWICE)):
            if key(index) != keys[index]:
                raise UserError(
                    f"Sample {index} of dataset.{name} changes when it is read again with the same "
                    "seeds: no result could be reproduced. Draw from torch's, numpy's or "
                    "Python's own random stream (torch.rand, np.random.rand, random.random) and "
                    "not from np.random.default_rng(), a generator that the data set keeps, or the "
                    "time, and change no stored image in place."
                )
    return Contents(keys, [value[:32] for value in keys], [_place(split, i) for i in range(count)])


def _checked(
    who: str, sample: Any, input_size: tuple[int, ...], kind: str, width: int
) -> tuple[torch.Tensor, Any]:
    """Return the image and the target of a sample; UserError if it is anything else."""
    if not isinstance(sample, tuple | list) or len(sample) != 2:
        raise UserError(f"{who} is {described(sample)}; a sample is a pair (image, {kind}).")
    image, target = sample
    if fault := _fault(image, input_size):
        wrong, advice = fault
        raise UserError(
            f"{who}: the image {wrong}; it must be a finite float32 tensor of shape {input_size}. "
            f"{advice}."
        )
    return image.as_subclass(torch.Tensor), _target(who, target, kind, width)


def _fault(image: Any, input_size: tuple[int, ...]) -> tuple[str, str] | None:
    """Return what is wrong with an image, and how to fix it; None if nothing is."""
    if not isinstance(image, torch.Tensor):
        advice = "torch.tensor(x, dtype=torch.float32)"
        if isinstance(image, np.ndarray | np.generic):
            advice = "torch.from_numpy(x).float()"
        elif hasattr(image, "getpixel"):
            transforms = "Compose([ToImage(), ToDtype(torch.float32, scale=True)])"
            advice = f"torchvision.transforms.v2: {transforms}"
        return f"is {described(image)}", f"Use {advice}"
    if image.dtype != torch.float32:
        advice = "x.float() / 255" if image.dtype == torch.uint8 else "x.float()"
        wanted = "x.abs(), or two channels" if image.is_complex() else advice
        return f"is of {image.dtype}", f"Use {wanted}"
    if image.layout != torch.strided or image.is_nested:
        return f"is stored as {image.layout}", "Use x.to_dense()"
    if image.device.type != "cpu":
        return f"is on {image.device}", "Use x.cpu(): batches are sent to the device when they run"
    if image.requires_grad:
        return "is part of a computation of gradients", "Use x.detach()"
    if tuple(image.shape) != input_size:
        advice = "Resize or reshape it, or give that shape as input_size"
        return f"has shape {tuple(image.shape)}", advice
    if not image.isfinite().all():
        wrong = "NaN" if image.isnan().any() else "infinite numbers"
        return f"has {wrong}", "Leave it out, or put it right"
    return None


def _target(who: str, value: Any, kind: str, width: int) -> Any:
    """Return the target of a sample as plain numbers; UserError unless it is one of its kind."""
    if kind == "class":
        return _class_number(who, value, width)
    wanted = "0 or 1 for each label" if kind == "labels" else "finite float32 numbers"
    tensor = isinstance(value, torch.Tensor) and value.shape == (width,)
    if kind == "labels":
        fits = tensor and bool(((value == 0) | (value == 1)).all())
    else:
        fits = tensor and value.dtype == torch.float32 and bool(value.isfinite().all())
    if not fits:
        raise UserError(
            f"{who}: the target is {value!r:.60}; it must be a tensor of shape ({width},) with "
            f"{wanted}."
        )
    return value.tolist()


def _class_number(who: str, label: Any, num_classes: int) -> int:
    number, allowed = python_number(label), f"the {num_classes} classes are 0 to {num_classes - 1}"
    if not isinstance(number, int):
        raise UserError(
            f"{who}: the class is {described(label)}; {allowed}, each an int or an integer tensor "
            "without dimensions. Number words, take argmax() of one-hot vectors, int(y) of others."
        )
    if not 0 <= number < num_classes:
        raise UserError(f"{who} has class {number}; {allowed}. Number them so, or leave it out.")
    return number


def python_number(value: Any) -> Any:
    """Return an integer of any library as Python's int; anything else as it is."""
    try:
        return value if getattr(value, "ndim", 0) else int(operator.index(value))
    except (TypeError, ValueError, RuntimeError):
        return value


def described(value: Any) -> str:
    """Describe a value for a message."""
    kind = type(value)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    if isinstance(value, torch.Tensor | np.ndarray):
        return f"a {name} of {value.dtype} and shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a {name} of {', '.join(map(str, value))}"
    if isinstance(value, tuple | list):
        return f"a {name} of {len(value)}"
    return f"{value!r:.60}" if isinstance(value, str | int | float) else f"a {name}"


def _sample(who: str, split: Any, index: int) -> Any:
    """Read one sample as a DataLoader does."""
    try:
        read_batch = getattr(split, "__getitems__", None)
        return read_batch([index])[0] if read_batch else split[index]
    except UserError as error:
        raise UserError(f"{who}: {error}") from error
    except Exception as error:  # a user's code may raise anything
        raise UserError(
            f"{who} of {len(split)} cannot be read: {reason(error)}. Put its __getitem__ right, "
            "or its __len__."
        ) from error


def _place(dataset: Any, index: int) -> Hashable:
    """Return the data set below all subsets, and the number of the sample in it."""
    while type(dataset) is Subset:
        dataset, index = dataset.dataset, dataset.indices[index]
    return id(dataset), index


def check_apart(splits: Mapping[str, Contents]) -> None:
    """Raise UserError if a split is contained in another; log a warning if two share images.

    A split that has mostly equal images, as in toy data, is not refused because its images equal
    those of another split.
    """
    common: dict[tuple[str, str], int] = {}
    sets = {name: ({*split.images}, {*split.places}) for name, split in splits.items()}
    for inner, outer in permutations(splits, 2):
        part, (images, places) = splits[inner], sets[outer]
        placed = [place in places for place in part.places]
        shared = [i in images or at for i, at in zip(part.images, placed, strict=True)]
        common[inner, outer] = sum(shared)
        varied = 2 * len(sets[inner][0]) > len(part.images)
        if all(placed) or (varied and all(shared)):
            raise UserError(
                f"All {len(shared)} images of dataset.{inner} are in dataset.{outer}, too. Images "
                "used for training or selection cannot measure the result: divide the images into "
                "four parts that share none."
            )
    for outer, inner in combinations(splits, 2):
        if count := common[inner, outer]:
            log.warning(
                "%d of the %d images of dataset.%s are in dataset.%s, too.",
                count, len(splits[inner].images), inner, outer,
            )  # fmt: skip


def reason(error: Exception) -> str:
    """Describe an error raised by the user's code or a library, for a message."""
    return f"{type(error).__name__}: {error}".rstrip(": .")
