"""MNIST and Fashion-MNIST from the files that torchvision and Debian lay down."""

import gzip
import struct
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import datasets as official

from pruning_lab.datasets.fashion_mnist import fashion_mnist
from pruning_lab.datasets.mnist import mnist
from pruning_lab.errors import UserError

PACKAGE = Path("/usr/share/datasets/fashion-mnist")
COUNTS = {"train": 80, "t10k": 30}
READERS = {"MNIST": mnist, "FashionMNIST": fashion_mnist}
STATISTICS = {"MNIST": (0.1307, 0.3081), "FashionMNIST": (0.2860, 0.3530)}


def pictures(part):
    """Every pixel of picture n is n, but for the first row, which counts the columns."""
    found = np.arange(COUNTS[part])[:, None, None] + np.zeros((1, 28, 28))
    found[:, 0] = np.arange(28)
    return found


def files():
    for part, count in COUNTS.items():
        for what, array in (
            ("images-idx3", pictures(part)), ("labels-idx1", np.arange(count) % 10),
        ):  # fmt: skip
            head = struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape)
            yield f"{part}-{what}-ubyte", head + array.astype(np.uint8).tobytes()


def lay_down(root, name):
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    for file, content in files():
        (raw / file).write_bytes(content)


def read(name, root, **arguments):
    if name == "FashionMNIST":
        arguments = {"debian_package": str(root / "no package")} | arguments
    return READERS[name](root=str(root), **({"score": 10, "val": 20} | arguments))


@pytest.mark.parametrize("name", READERS)
def test_a_copy_is_read_without_a_download(name, tmp_path, monkeypatch):
    lay_down(tmp_path, name)
    monkeypatch.setattr(official.MNIST, "download", lambda self: pytest.fail("downloaded"))
    splits = read(name, tmp_path)
    assert (splits.num_classes, splits.input_size) == (10, (1, 28, 28))
    assert splits.test.images[:, 0].numpy().tolist() == pictures("t10k").tolist()
    assert splits.test.labels.tolist() == [n % 10 for n in range(30)]
    parts = [part.images[:, 0, 1, 0].tolist() for part in (splits.train, splits.score, splits.val)]
    assert [len(part) for part in parts] == [50, 10, 20]
    assert sorted(chain.from_iterable(parts)) == list(range(80))
    for part in (splits.train, splits.score, splits.val):
        assert torch.bincount(part.labels).tolist() == [len(part) // 10] * 10
        assert part.labels.tolist() == (part.images[:, 0, 1, 0] % 10).tolist()


@pytest.mark.parametrize("name", READERS)
def test_pixels_are_normalised_by_the_published_mean_and_deviation(name, tmp_path):
    lay_down(tmp_path, name)
    mean, deviation = STATISTICS[name]
    image, label = read(name, tmp_path, download=False, channels=3).test[17]
    assert label == 7
    assert image.shape == (3, 28, 28)
    for channel in image:
        assert channel[0, 27].item() == pytest.approx((27 / 255 - mean) / deviation, abs=1e-6)
        assert channel[27, 0].item() == pytest.approx((17 / 255 - mean) / deviation, abs=1e-6)


@pytest.mark.parametrize("name", READERS)
def test_what_is_missing_is_downloaded_to_the_root(name, tmp_path, monkeypatch):
    calls = []

    def download(self):
        calls.append(self.root)
        if len(calls) == 1:
            lay_down(Path(self.root), name)

    monkeypatch.setattr(official.MNIST, "download", download)
    assert len(read(name, tmp_path).train) == 50
    assert set(calls) == {str(tmp_path)}


@pytest.mark.parametrize("name", READERS)
def test_a_copy_that_lacks_a_file_is_missing(name, tmp_path):
    lay_down(tmp_path, name)
    (tmp_path / name / "raw" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(UserError, match=f"^{name} is not in {tmp_path} and dataset.download=false"):
        read(name, tmp_path, download=False)


def test_debians_package_completes_a_copy_and_replaces_nothing(tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    for file, content in files():
        (package / f"{file}.gz").write_bytes(gzip.compress(content))
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    mine = struct.pack(">II", 0x0801, 30) + bytes([9] * 29 + [0])
    (raw / "t10k-labels-idx1-ubyte").write_bytes(mine)
    splits = read("FashionMNIST", tmp_path, download=False, debian_package=str(package))
    assert splits.test.labels.tolist() == [9] * 29 + [0]
    assert len(splits.train) == 50
    assert sorted(path.name for path in raw.iterdir()) == sorted(file for file, _ in files())


@pytest.mark.skipif(not PACKAGE.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_debians_package_has_6000_and_1000_pictures_a_class(tmp_path):
    splits = fashion_mnist(root=str(tmp_path), download=False)
    inner = torch.cat([splits.train.labels, splits.score.labels, splits.val.labels])
    assert torch.bincount(inner).tolist() == [6000] * 10
    assert torch.bincount(splits.test.labels).tolist() == [1000] * 10
    packed = gzip.decompress((PACKAGE / "t10k-images-idx3-ubyte.gz").read_bytes())
    assert splits.test.images.numpy().tobytes() == packed[16:]  # the official test part, in order
