"""Picture files: read as what they show, or refused by name."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import Subset
from torchvision.tv_tensors import Image as ImageTensor
from tqdm import tqdm

from pruning_lab import ranks
from pruning_lab.datasets.samples import Contents, reason
from pruning_lab.errors import UserError, printable

EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
"""Pillow's modes that it makes RGB of without a loss."""

READERS = 8
"""Files that are read at once: more than one, since disks and networks make each wait."""

BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262
"""Tags of TIFF; of the second, 1 says that 0 is black."""


class Pictures(Subset):
    """Some pictures of an ``ImageFolder``."""

    def contents(self, name: str, count: int) -> Contents:
        """What the first ``count`` files hold; neither their names nor where they lie matter."""
        samples = [self.dataset.samples[index] for index in self.indices[:count]]  # type: ignore[attr-defined]
        paths = [path for path, _ in samples]
        about = {"unit": "file", "disable": ranks.silent(), "leave": False}
        with ThreadPool(READERS) as pool:
            digests = pool.imap(_digest, paths, 16)
            keys = list(tqdm(digests, f"Reading dataset.{name}", count, **about))
        labels = [str(label).encode() for _, label in samples]
        whole = [key + label for key, label in zip(keys, labels, strict=True)]
        return Contents(whole, keys, paths)


def _digest(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise _unreadable(path, error) from error


@contextmanager
def _opened(path: str) -> Iterator[Image.Image]:
    """A picture whose header is read; UserError for whatever goes wrong inside, too."""
    try:
        # of a file that Pillow opens by its name, and maps, a TIFF to be turned comes scrambled
        with Path(path).open("rb") as file, Image.open(file) as picture:
            yield picture
    except Exception as error:  # Pillow has no class of its own for all that a file may lack
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: Exception) -> UserError:
    why = str(error) if isinstance(error, UserError | OSError) else reason(error)
    return UserError(
        f"{printable(path)} cannot be read as a picture: {printable(why)}. Delete or replace it."
    )


def check_picture(path: str) -> None:
    """UserError unless the file begins as a picture that can be read as what it shows.

    The rest is read when it is needed; but of decimal numbers all are, to see their range.
    """
    with _opened(path) as picture:
        _check(picture)
        if picture.mode == "F":
            _grey(picture, 1.0)


def read_picture(path: str) -> Image.Image | ImageTensor:
    """The picture as viewers show it, turned as the camera was, on white where it is transparent.

    RGB of 8 bits; grey of more bits as three equal channels of float32 from 0 to 1.
    """
    with _opened(path) as picture:
        _check(picture)
        upright = ImageOps.exif_transpose(picture)
        if white_value := _white(picture):
            return _grey(upright, white_value)
        if not upright.has_transparency_data:
            return upright.convert("RGB")
        white = Image.new("RGBA", upright.size, "white")
        return Image.alpha_composite(white, upright.convert("RGBA")).convert("RGB")


def _check(picture: Image.Image) -> None:
    """UserError for what is lost when one picture of three channels is made of it."""
    count = getattr(picture, "n_frames", 1)
    if count > 1 and picture.format != "MPO":  # of a camera: the first is the picture
        raise UserError(f"it holds {count} pictures; save the one that is meant")
    if picture.mode in EIGHT_BITS:
        return
    if _white(picture) is None or picture.has_transparency_data:
        raise UserError(
            f"its values ({picture.format}, Pillow's mode {picture.mode}) do not say what is white;"
            " save it as RGB, or as grey of 8 or 16 bits"
        )


def _white(picture: Image.Image) -> float | None:
    """The value that is white in grey of more than 8 bits; None where the file does not say."""
    tags = getattr(picture, "tag_v2", {PHOTOMETRIC: 1})
    if picture.mode == "F":
        return 1.0 if tags.get(PHOTOMETRIC) == 1 else None
    if picture.format in ("PNG", "PPM", "JPEG2000") and picture.mode.startswith("I"):
        return 65535.0  # Pillow scales other depths to that
    if picture.mode.startswith("I;16") and BITS_PER_SAMPLE in tags and tags[PHOTOMETRIC] == 1:
        return 2.0 ** tags[BITS_PER_SAMPLE][0] - 1
    return None


def _grey(picture: Image.Image, white: float) -> ImageTensor:
    """Grey as three channels from 0 to 1; UserError where it has other numbers."""
    pixels = np.asarray(picture).astype(np.float32) / white
    if not (pixels.min() >= 0 and pixels.max() <= 1):
        raise UserError(
            f"it has numbers from {pixels.min()} to {pixels.max()}, where 0 is black and 1 is "
            "white; save it so, or as grey of 8 or 16 bits"
        )
    return ImageTensor(torch.from_numpy(pixels).expand(3, -1, -1))
