"""Fashion-MNIST: 60,000 + 10,000 pictures of clothes of 28x28 pixels."""

import gzip
import os
import zlib
from pathlib import Path

from torchvision import datasets

from pruning_lab.datasets.official import obtain, official_splits
from pruning_lab.datasets.splits import Splits
from pruning_lab.errors import UserError, check_text

STATISTICS = ((0.2860,), (0.3530,))
FILES = [
    f"{part}-{what}-ubyte" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1")
]


def fashion_mnist(
    root: str = "data",
    download: bool = True,
    debian_package: str = "/usr/share/datasets/fashion-mnist",
    size: int = 28,
    channels: int = 1,
    train: int | None = None,
    score: int | None = 256,
    val: int | None = 1000,
    test: int | None = None,
    split_seed: int = 0,
) -> Splits:
    """Return ten classes; ``score`` and ``val`` are taken from the official training part.

    Images are padded with black to ``size``. The files of Debian's package dataset-fashion-mnist
    are used if it is installed.
    """
    advice = (
        "On Debian: apt-get install dataset-fashion-mnist. Elsewhere run once with a network, or "
        f"put its four files (train-images-idx3-ubyte, ...) into {root}/FashionMNIST/raw, or set "
        "dataset.root to where they are."
    )
    check_text("dataset.root", root, "data")
    check_text("dataset.debian_package", debian_package, "/usr/share/datasets/fashion-mnist")
    _unpack(Path(debian_package), Path(root) / "FashionMNIST" / "raw")
    parts = obtain(datasets.FashionMNIST, root, download, advice)
    sizes = {"train": train, "score": score, "val": val, "test": test}
    return official_splits(parts, STATISTICS, sizes, split_seed, channels, size=size)


def _unpack(package: Path, raw: Path) -> None:
    """Unpack Debian's gzip files to where torchvision looks; existing files are not replaced."""
    for name in FILES:
        packed, target = package / f"{name}.gz", raw / name
        if packed.is_file() and not target.exists():
            temporary = raw / f".{os.getpid()}-{name}"
            try:
                content = gzip.decompress(packed.read_bytes())
                raw.mkdir(parents=True, exist_ok=True)
                temporary.write_bytes(content)
                temporary.replace(target)
            except (OSError, EOFError, zlib.error) as error:
                raise UserError(
                    f"{packed} cannot be unpacked to {raw}: {error}. Install the package "
                    "dataset-fashion-mnist again, or give another dataset.root."
                ) from error
