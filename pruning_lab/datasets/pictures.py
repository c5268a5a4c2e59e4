"""Read picture files as viewers show them; refuse files that cannot be read so, by name."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import Subset
from tqdm import tqdm

from pruning_lab.datasets.samples import Contents, reason
from pruning_lab.errors import UserError, printable
from pruning_lab.runtime import distributed

if TYPE_CHECKING:
    from torchvision.tv_tensors import Image as ImageTensor

EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
"""Pillow's modes that it converts to RGB without loss."""

READERS = 8
"""Number of files read at once; several, to hide the latency of disks and networks."""

BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262
"""Tags of TIFF; a PHOTOMETRIC of 1 means that 0 is black."""


class Pictures(Subset):
    """A subset of the pictures of an ``ImageFolder``."""

    def contents(self, name: str, count: int) -> Contents:
        """Return the contents of the first ``count`` files, whatever their names and folders."""
        samples = [self.dataset.samples[index] for index in self.indices[:count]]  # type: ignore[attr-defined]
        paths = [path for path, _ in samples]
        about = {"unit": "file", "disable": distributed.silent(), "leave": False}
        with ThreadPool(READERS) as pool:
            digests = pool.imap(_digest, paths, 16)
            keys = list(tqdm(digests, f"Reading dataset.{name}", count, **about))
        labels = [str(label).encode() for _, label in samples]
        samples_read = [key + label for key, label in zip(keys, labels, strict=True)]
        return Contents(samples_read, keys, paths)


def _digest(path: str) -> bytes:
    with _opened(path) as file:
        return hashlib.file_digest(file, "sha256").digest()


@contextmanager
def _opened(path: str) -> Iterator[BufferedReader]:
    """Open a file to read a picture; errors inside the context become a UserError that names it.

    Opened by name, Pillow maps the file into memory: TIFFs to be rotated come out scrambled.
    """
    try:
        with Path(path).open("rb") as file:
            yield file
    except Exception as error:  # Pillow raises many types for damaged files
        why = str(error) if isinstance(error, UserError | OSError) else reason(error)
        raise UserError(
            f"{printable(path)} cannot be read as a picture: {printable(why)}. Delete or replace "
            "it."
        ) from error


def check_picture(path: str) -> None:
    """Raise UserError unless the file begins like a picture that ``read_picture`` can read.

    Only the header is read, but all pixels if they are decimal numbers, to check their range.
    """
    with _opened(path) as file, Image.open(file) as picture:
        _check(picture)
        if picture.mode == "F":
            _grey(picture, 1.0)


def read_picture(path: str) -> "Image.Image | ImageTensor":
    """Return the picture as viewers show it: upright (EXIF), on white where it is transparent.

    It is 8-bit RGB; grey of more bits becomes three equal channels of float32 from 0 to 1.
    """
    with _opened(path) as file, Image.open(file) as picture:
        _check(picture)
        upright = ImageOps.exif_transpose(picture)
        if white_value := _white(picture):
            return _grey(upright, white_value)
        if not upright.has_transparency_data:
            return upright.convert("RGB")
        white = Image.new("RGBA", upright.size, "white")
        return Image.alpha_composite(white, upright.convert("RGBA")).convert("RGB")


def _check(picture: Image.Image) -> None:
    """Raise UserError if converting to one picture of three channels would lose information."""
    count = getattr(picture, "n_frames", 1)
    if count > 1 and picture.format != "MPO":  # a camera's MPO: the first is the picture
        raise UserError(f"it holds {count} pictures; save the one that is meant")
    if picture.mode in EIGHT_BITS:
        return
    if _white(picture) is None or picture.has_transparency_data:
        raise UserError(
            f"its values ({picture.format}, Pillow's mode {picture.mode}) do not say what is white;"
            " save it as RGB, or as grey of 8 or 16 bits"
        )


def _white(picture: Image.Image) -> float | None:
    """Return the value of white in grey of more than 8 bits; None if the file does not say."""
    tags = getattr(picture, "tag_v2", {PHOTOMETRIC: 1})
    if picture.mode == "F":
        return 1.0 if tags.get(PHOTOMETRIC) == 1 else None
    if picture.format in ("PNG", "PPM", "JPEG2000") and picture.mode.startswith("I"):
        return 65535.0  # Pillow scales other depths to this
    if picture.mode.startswith("I;16") and BITS_PER_SAMPLE in tags and tags[PHOTOMETRIC] == 1:
        return 2.0 ** tags[BITS_PER_SAMPLE][0] - 1
    return None


def _grey(picture: Image.Image, white: float) -> "ImageTensor":
    """Return grey as three channels from 0 to 1; UserError if values are out of this range."""
    from torchvision.tv_tensors import Image as ImageTensor  # a second of imports

    pixels = np.asarray(picture).astype(np.float32) / white
    if not (pixels.min() >= 0 and pixels.max() <= 1):
        raise UserError(
            f"it has numbers from {pixels.min()} to {pixels.max()}, where 0 is black and 1 is "
            "white; save it so, or as grey of 8 or 16 bits"
        )
    return ImageTensor(torch.from_numpy(pixels).expand(3, -1, -1))
