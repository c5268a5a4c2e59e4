"""What a sample of a data set must be; every one is read and checked before any work is done."""

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

from pruning_lab import ranks
from pruning_lab.errors import UserError
from pruning_lab.random_streams import seed_all, streams_kept

log = getLogger(__name__)

TWICE = 32
"""How many samples of a split are read a second time, to see whether they are the same."""


class Contents(NamedTuple):
    """What the samples of a split hold.

    ``whole`` determines all of it. ``images`` has a key for each image: equal images have equal
    keys. ``places`` says of each where it is read from, for images that vary.
    """

    whole: Sequence[bytes | memoryview]
    images: Sequence[Hashable]
    places: Sequence[Hashable]


def length(name: str, split: Any) -> int:
    """How many samples a split has; UserError where they cannot be counted, or are too few."""
    if isinstance(split, IterableDataset) or not (
        hasattr(split, "__len__") and hasattr(split, "__getitem__")
    ):
        raise UserError(
            f"dataset.{name} is {_described(split)}, which has no samples by number. Give a data "
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
    name: str, split: Any, count: int, num_classes: int, input_size: tuple[int, ...]
) -> Contents:
    """What the first ``count`` samples of a split hold.

    Raises UserError for the first that is no (float32 image, class) of such a data set, and where
    the first few are others when they are read again with the same seeds.
    """

    def key(index: int) -> bytes:
        who = f"Sample {index} of dataset.{name}"
        image, label = checked(who, _sample(who, split, index), num_classes, input_size)
        return hashlib.sha256(image.contiguous().numpy().data).digest() + str(label).encode()

    about = {"unit": "sample", "disable": ranks.silent(), "leave": False}
    with streams_kept():
        seed_all(0)  # of samples that are drawn at random, the same ones
        found = [key(index) for index in tqdm(range(count), f"Reading dataset.{name}", **about)]
        seed_all(0)
        for index in range(min(count, TWICE)):
            if key(index) != found[index]:
                raise UserError(
                    f"Sample {index} of dataset.{name} is another one when it is read again with "
                    "the same seeds: no result could be repeated. Draw from torch's, numpy's or "
                    "Python's own random stream (torch.rand, np.random.rand, random.random) and "
                    "not from np.random.default_rng(), a generator that the data set keeps, or the "
                    "time, and change no stored image in place."
                )
    return Contents(found, [each[:32] for each in found], [_place(split, i) for i in range(count)])


def checked(
    who: str, sample: Any, num_classes: int, input_size: tuple[int, ...]
) -> tuple[torch.Tensor, int]:
    """The image and the class of a sample; UserError where it is anything else."""
    if not isinstance(sample, tuple | list) or len(sample) != 2:
        raise UserError(f"{who} is {_described(sample)}; a sample is a pair (image, class).")
    image, label = sample
    if fault := _fault(image, input_size):
        wrong, advice = fault
        raise UserError(
            f"{who}: the image {wrong}; it must be a finite float32 tensor of shape {input_size}. "
            f"{advice}."
        )
    return image.as_subclass(torch.Tensor), _class_number(who, label, num_classes)


def _fault(image: Any, input_size: tuple[int, ...]) -> tuple[str, str] | None:
    """What is wrong with an image, and what helps; None where nothing is."""
    if isinstance(image, np.ndarray | np.generic):
        return f"is {_described(image)}", "Use torch.from_numpy(x).float()"
    if hasattr(image, "getpixel"):
        advice = "Compose([ToImage(), ToDtype(torch.float32, scale=True)])"
        return f"is {_described(image)}", f"Use torchvision.transforms.v2: {advice}"
    if not isinstance(image, torch.Tensor):
        return f"is {_described(image)}", "Use torch.tensor(x, dtype=torch.float32)"
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


def _class_number(who: str, label: Any, num_classes: int) -> int:
    number, allowed = python_number(label), f"the {num_classes} classes are 0 to {num_classes - 1}"
    if not isinstance(number, int):
        raise UserError(
            f"{who}: the class is {_described(label)}; {allowed}, each an int or an integer tensor "
            "without dimensions. Number words, take argmax() of one-hot vectors, int(y) of others."
        )
    if not 0 <= number < num_classes:
        raise UserError(f"{who} has class {number}; {allowed}. Number them so, or leave it out.")
    return number


def python_number(value: Any) -> Any:
    """A whole number of any library as Python's; anything else as it is."""
    try:
        return value if getattr(value, "ndim", 0) else int(operator.index(value))
    except (TypeError, ValueError, RuntimeError):
        return value


def _sample(who: str, split: Any, index: int) -> Any:
    """One sample, read as a DataLoader does."""
    try:
        several = getattr(split, "__getitems__", None)
        return several([index])[0] if several else split[index]
    except UserError as error:
        raise UserError(f"{who}: {error}") from error
    except Exception as error:  # a user's code may raise anything
        raise UserError(
            f"{who} of {len(split)} cannot be read: {reason(error)}. Put its __getitem__ right, "
            "or its __len__."
        ) from error


def _place(dataset: Any, index: int) -> Hashable:
    """The data set below all subsets, and the number of the sample in it."""
    while type(dataset) is Subset:
        dataset, index = dataset.dataset, dataset.indices[index]
    return id(dataset), index


def check_apart(splits: Mapping[str, Contents]) -> None:
    """UserError where a split stands in another one; images that two have are counted and said.

    Where most images of a split are equal among themselves, as in toy data, none is refused for
    being equal to one elsewhere.
    """
    common: dict[tuple[str, str], int] = {}
    every = {name: ({*split.images}, {*split.places}) for name, split in splits.items()}
    for one, other in permutations(splits, 2):
        part, (images, places) = splits[one], every[other]
        placed = [place in places for place in part.places]
        shared = [i in images or at for i, at in zip(part.images, placed, strict=True)]
        common[one, other] = sum(shared)
        varied = 2 * len(every[one][0]) > len(part.images)
        if all(placed) or (varied and all(shared)):
            raise UserError(
                f"All {len(shared)} images of dataset.{one} are in dataset.{other}, too. What is "
                "trained or chosen on an image cannot be judged by it: divide the images into four "
                "parts that share none."
            )
    for other, one in combinations(splits, 2):
        if count := common[one, other]:
            log.warning(
                "%d of the %d images of dataset.%s are in dataset.%s, too.",
                count, len(splits[one].images), one, other,
            )  # fmt: skip


def _described(value: Any) -> str:
    """What a value is, for a message."""
    kind = type(value)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    if isinstance(value, torch.Tensor | np.ndarray):
        return f"a {name} of {value.dtype} and shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a {name} of {', '.join(map(str, value))}"
    if isinstance(value, tuple | list):
        return f"a {name} of {len(value)}"
    return f"{value!r:.60}" if isinstance(value, str | int | float) else f"a {name}"


def reason(error: Exception) -> str:
    """An error of somebody else's code, for a message."""
    return f"{type(error).__name__}: {error}".rstrip(": .")
