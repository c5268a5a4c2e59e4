"""Files of published data sets that are damaged, do not belong together or are not there."""

import gzip
import struct

import numpy as np
import pytest

from pruning_lab.datasets.cifar import cifar
from pruning_lab.datasets.fashion_mnist import FILES, fashion_mnist
from pruning_lab.datasets.mnist import mnist
from tests.bad_inputs.attempts import COUNT, TEXT, check_refused

COUNTS = {"train": 80, "t10k": 30}


def idx(array, magic=0x0800):
    head = struct.pack(f">I{array.ndim}I", magic + array.ndim, *array.shape)
    return head + array.astype(np.uint8).tobytes()


def laid(root, **other):
    """Fashion-MNIST's four files, some of them with another content."""
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in COUNTS.items():
        images, labels = np.zeros((count, 28, 28)), np.arange(count) % 10
        (raw / f"{part}-images-idx3-ubyte").write_bytes(other.get(f"{part}_images", idx(images)))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(other.get(f"{part}_labels", idx(labels)))
    return root


def fashion(root, package="/nowhere", **options):
    options = {"download": False, "score": 10, "val": 20} | options
    return fashion_mnist(str(root), debian_package=str(package), **options)


def packed(root, content):
    """Debian's files, with this content."""
    package = root / "package"
    package.mkdir()
    for name in FILES:
        (package / f"{name}.gz").write_bytes(content)
    return fashion(root, package)


def labelled(last, count=80):
    return idx(np.append(np.arange(count - 1) % 10, last))


DAMAGED = "FashionMNIST in .* cannot be read: a file is damaged .*Delete its folder there"
OFFICIAL = {
    "pictures cut short": (
        lambda root: fashion(laid(root, t10k_images=idx(np.zeros((30, 28, 28)))[:5000])), DAMAGED,
    ),
    "pictures empty": (lambda root: fashion(laid(root, train_images=b"")), DAMAGED),
    "labels of another kind": (
        lambda root: fashion(laid(root, train_labels=b"\xff\xff\xff\xff" + labelled(9)[4:])),
        DAMAGED,
    ),
    "a damaged file is not downloaded over": (
        lambda root: fashion(laid(root, train_images=b""), download=True), DAMAGED,
    ),
    "numbers for bytes": (
        lambda root: fashion(laid(root, train_images=idx(np.zeros((80, 28, 28)), 0x0D00))), DAMAGED,
    ),
    "fewer labels": (
        lambda root: fashion(laid(root, train_labels=labelled(9, 40))),
        "80 pictures have 40 labels: the files do not belong together",
    ),
    "a label out of range": (
        lambda root: fashion(laid(root, train_labels=labelled(200))),
        r"labels \[200\] are none of 11 classes, 0 to 10: a file is damaged",
    ),
    "a test label out of range": (
        lambda root: fashion(laid(root, t10k_labels=labelled(77, 30))),
        r"labels \[77\] are none of 10 classes, 0 to 9: a file is damaged",
    ),
    "packed and cut short": (
        lambda root: packed(root, gzip.compress(bytes(1000))[:20]),
        "train-images-idx3-ubyte.gz cannot be unpacked to .*Install the package",
    ),
    "not packed": (lambda root: packed(root, b"hello"), "cannot be unpacked to .*Not a gzipped"),
    "no channels": (lambda root: fashion(laid(root), channels=0), f"dataset.channels=0 {COUNT} 1"),
    "channels text": (lambda root: fashion(laid(root), channels="a"), "dataset.channels=a is not"),
    "half a pixel": (lambda root: fashion(laid(root), size=30.5), f"dataset.size=30.5 {COUNT} 1"),
    "root null": (lambda root: mnist(None, download=False), f"dataset.root=None {TEXT}"),
    "root a file": (lambda root: mnist("/etc/passwd", download=False), "is not in /etc/passwd"),
    "root a file, with a network": (
        lambda root: mnist("/etc/passwd"), "MNIST is not in /etc/passwd and cannot be downloaded",
    ),
    "download in quotes": (
        lambda root: cifar(root=str(root), download="false"),
        "dataset.download=false is not possible; it is true or false, not text",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OFFICIAL)
def test_published_files_that_cannot_be_used(case, tmp_path, monkeypatch):
    check_refused(OFFICIAL[case], tmp_path, monkeypatch)
