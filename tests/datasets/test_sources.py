"""Every data set from what lies on the disk, and what is said when nothing does."""

import gzip
import struct
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision import datasets as official

from pruning_lab.datasets.cifar import cifar
from pruning_lab.datasets.digits import digits
from pruning_lab.datasets.fashion_mnist import FILES, fashion_mnist
from pruning_lab.datasets.image_folder import image_folder
from pruning_lab.datasets.mnist import mnist
from pruning_lab.datasets.official import official_splits
from pruning_lab.datasets.synthetic import synthetic
from pruning_lab.errors import UserError

PACKAGE = Path("/usr/share/datasets/fashion-mnist")


def test_digits_are_scikit_learns_images():
    splits = digits(size=8)
    sizes = {"train": 1797 - 256 - 180 - 360, "score": 256, "val": 180, "test": 360}
    assert {name: len(getattr(splits, name)) for name in sizes} == sizes
    stored = torch.cat([getattr(splits, name).images for name in sizes])
    original = (torch.from_numpy(load_digits().images) * 255 / 16).round().to(torch.uint8)
    assert torch.equal(
        stored.flatten(1).unique(dim=0), original.flatten(1).unique(dim=0)
    )  # all of them, each once


def test_digits_are_resized_normalised_and_repeated():
    splits = digits(channels=3)
    image, label = splits.test[0]
    assert (splits.input_size, splits.num_classes, label.item() in range(10)) == (
        (3, 32, 32), 10, True,
    )  # fmt: skip
    assert torch.equal(image[0], image[2])
    pixels = digits(size=8).train[list(range(1001))][0]
    assert pixels.mean().abs() < 0.02
    assert (pixels.std() - 1).abs() < 0.02


def idx(array):
    """The format of MNIST's files: magic number with the dimensions, sizes, bytes."""
    head = struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape)
    return head + array.astype(np.uint8).tobytes()


def test_fashion_mnist_is_read_from_debians_package(tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    labels = {"train": np.arange(60) % 10, "t10k": np.arange(20) % 10}
    for part, values in labels.items():
        images = np.arange(len(values))[:, None, None] + np.zeros((1, 28, 28))
        for what, array in (("images-idx3", images), ("labels-idx1", values)):
            (package / f"{part}-{what}-ubyte.gz").write_bytes(gzip.compress(idx(array)))
    splits = fashion_mnist(
        root=str(tmp_path / "data"), download=False, debian_package=str(package), score=10, val=20
    )
    assert splits.input_size == (1, 28, 28)
    padded = fashion_mnist(root=str(tmp_path / "data"), download=False, size=32, score=10, val=20)
    assert padded.input_size == (1, 32, 32)
    assert [len(part) for part in (splits.train, splits.score, splits.val)] == [30, 10, 20]
    assert splits.test.images[:, 0, 0, 0].tolist() == list(range(20))  # the official test part
    assert splits.test.labels.tolist() == labels["t10k"].tolist()
    parts = [set(part.images[:, 0, 0, 0].tolist()) for part in
             (splits.train, splits.score, splits.val)]  # fmt: skip
    assert set.union(*parts) == set(range(60))
    assert {path.name for path in (tmp_path / "data/FashionMNIST/raw").iterdir()} == set(FILES)


@pytest.mark.skipif(not PACKAGE.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_the_real_fashion_mnist(tmp_path):
    splits = fashion_mnist(root=str(tmp_path), download=False, test=1000)
    assert len(splits.train) == 60_000 - 256 - 1000
    assert torch.bincount(splits.test.labels).tolist() == [100] * 10
    pixels = splits.train.images.float() / 255
    assert (pixels.mean().item(), pixels.std().item()) == pytest.approx((0.286, 0.353), abs=1e-3)


CALLS = {
    "FashionMNIST": (fashion_mnist, {"debian_package": "/nowhere"}, "apt-get install dataset-fash"),
    "MNIST": (mnist, {}, "MNIST/raw, or set dataset.root"),
    "CIFAR10": (cifar, {}, "unpack the python version of CIFAR-10 to"),
    "CIFAR100": (cifar, {"classes": 100}, "cifar-100-python, or set dataset.root"),
}


@pytest.mark.parametrize("name", CALLS)
def test_without_download_a_missing_data_set_is_explained(name, tmp_path):
    build, arguments, advice = CALLS[name]
    with pytest.raises(UserError, match=rf"(?s)^{name} is not in .*download=false.*{advice}"):
        build(root=str(tmp_path), download=False, **arguments)


@pytest.mark.parametrize("name", CALLS)
def test_without_a_network_a_missing_data_set_is_explained(name, tmp_path, monkeypatch):
    build, arguments, advice = CALLS[name]

    def offline(self):
        raise URLError("Name or service not known")

    monkeypatch.setattr(getattr(official, name), "download", offline)
    with pytest.raises(
        UserError, match=rf"(?s){name} .*cannot be downloaded .*not known.*{advice}"
    ):
        build(root=str(tmp_path), **arguments)


def part_of(count, classes):
    """What torchvision's CIFAR holds in memory: (N, H, W, C) bytes and a list of classes."""
    data = np.arange(count, dtype=np.uint8)[:, None, None, None] + np.zeros((1, 4, 4, 3), np.uint8)
    data[..., 2] = 7
    return SimpleNamespace(data=data, targets=[i % classes for i in range(count)])


@pytest.mark.parametrize(("size", "before", "after"), [(6, 1, 1), (7, 1, 2), (4, 0, 0)])
def test_images_are_padded_with_black(size, before, after):
    sizes = {"train": 20, "score": 10, "val": 10, "test": 15}
    statistics = ((0.5,) * 3, (1.0,) * 3)
    given = (part_of(60, 5), part_of(30, 5))
    splits, plain = (
        official_splits(given, statistics, sizes, 0, size=each) for each in (size, None)
    )
    assert splits.input_size == (3, size, size)
    inside = slice(before, size - after)
    assert torch.equal(splits.train.images[:, :, inside, inside], plain.train.images)
    assert splits.train.images.sum() == plain.train.images.sum()
    with pytest.raises(UserError, match=r"dataset.size=3 is too small: the images have 4 pixels"):
        official_splits(given, statistics, sizes, 0, size=3)


def test_official_parts_become_channels_first_and_only_train_is_augmented():
    sizes = {"train": 20, "score": 10, "val": 10, "test": 15}
    statistics = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    splits = official_splits((part_of(60, 5), part_of(30, 5)), statistics, sizes, 0, augment=True)
    assert splits.input_size == (3, 4, 4)
    assert splits.num_classes == 5
    assert [splits.train.augment, splits.score.augment, splits.val.augment,
            splits.test.augment] == [True, False, False, False]  # fmt: skip
    image, label = splits.test[0]
    number = splits.test.images[0, 0, 0, 0].item()
    assert label == number % 5
    assert image[:, 0, 0].tolist() == pytest.approx([number / 255, number / 255, 7 / 255])
    assert torch.bincount(splits.test.labels).tolist() == [3] * 5
    with pytest.raises(UserError, match=r"dataset.channels=1 is not possible"):
        official_splits((part_of(60, 5), part_of(30, 5)), statistics, sizes, 0, channels=1)


def test_cifar_has_10_or_100_classes():
    with pytest.raises(UserError, match="classes=20 is not known; CIFAR has 10 or 100"):
        cifar(classes=20)


def write_pictures(root, folder, classes, count):
    for shade, name in enumerate(classes):
        place = root / folder / name
        place.mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (20, 16), (100 * shade, 10, number)).save(place / f"{number}.png")


def test_image_folder_reads_classes_by_name(tmp_path):
    write_pictures(tmp_path, "train", ["ape", "bee"], 10)
    write_pictures(tmp_path, "test", ["ape", "bee"], 4)
    splits = image_folder(str(tmp_path), size=8, score=4, val=4)
    assert (splits.num_classes, splits.input_size) == (2, (3, 8, 8))
    assert [len(part) for part in (splits.train, splits.score, splits.val, splits.test)] == [
        12, 4, 4, 8,
    ]  # fmt: skip
    for index in range(8):
        image, label = splits.test[index]
        assert image[0, 4, 4] == pytest.approx((100 * label / 255 - 0.485) / 0.229, abs=1e-5)


def test_image_folder_says_what_is_wrong(tmp_path):
    with pytest.raises(UserError, match=r"train is not a folder.*root/train/CLASS"):
        image_folder(str(tmp_path))
    write_pictures(tmp_path, "train", ["ape", "bee"], 2)
    write_pictures(tmp_path, "test", ["ape", "cat"], 2)
    with pytest.raises(UserError, match="train and test have different classes"):
        image_folder(str(tmp_path))
    (tmp_path / "empty" / "ape").mkdir(parents=True)
    with pytest.raises(UserError, match="empty cannot be read"):
        image_folder(str(tmp_path), train_folder="empty")


def test_synthetic_images_are_prototypes_and_noise():
    clean = synthetic(noise=0.0)
    prototypes = {label.item(): image for image, label in (clean.train[i] for i in range(128))}
    assert len(prototypes) == 4
    for index in range(64):
        image, label = clean.test[index]
        assert torch.equal(image, prototypes[label.item()])
    assert torch.equal(synthetic().test.images, synthetic().test.images)
    assert not torch.equal(synthetic().test.images, synthetic(split_seed=1).test.images)
