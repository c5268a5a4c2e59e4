"""CIFAR from the files that torchvision unpacks: planes of red, green and blue, pickled."""

import pickle
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import datasets as official

from pruning_lab.datasets.cifar import cifar
from pruning_lab.errors import UserError

STATISTICS = {
    10: ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]),
    100: ([0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762]),
}
CLASSES = {10: official.CIFAR10, 100: official.CIFAR100}


def planes(numbers):
    """Red is the picture's number, green the row, blue the column."""
    rows, columns = np.mgrid[:32, :32]
    return np.array([[np.full((32, 32), n), rows, columns] for n in numbers], np.uint8)


def lay_down(root, classes, monkeypatch):
    """300 + 200 pictures; their checksums cannot be the published ones, so none is asked for."""
    kind = CLASSES[classes]
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    key = "labels" if classes == 10 else "fine_labels"
    for names, count in ((kind.train_list, 300), (kind.test_list, 200)):
        for number, (name, _) in enumerate(names):
            size = count // len(names)
            index = np.arange(number * size, (number + 1) * size)
            entry = {"data": planes(index % 256).reshape(size, -1), key: (index % classes).tolist()}
            if classes == 100:
                entry["coarse_labels"] = [19] * size
            (folder / name).write_bytes(pickle.dumps(entry))
    (folder / kind.meta["filename"]).write_bytes(pickle.dumps({kind.meta["key"]: ["a"] * classes}))
    for names in ("train_list", "test_list"):
        monkeypatch.setattr(kind, names, [[name, None] for name, _ in getattr(kind, names)])
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": None})


@pytest.mark.parametrize("classes", CLASSES)
def test_a_copy_is_read_without_a_download(classes, tmp_path, monkeypatch):
    lay_down(tmp_path, classes, monkeypatch)
    splits = cifar(classes, str(tmp_path), download=False, score=100, val=100)
    assert (splits.num_classes, splits.input_size) == (classes, (3, 32, 32))
    assert np.array_equal(splits.test.images.numpy(), planes(range(200)))
    assert splits.test.labels.tolist() == [n % classes for n in range(200)]
    for part in (splits.train, splits.score, splits.val):
        assert torch.bincount(part.labels).tolist() == [100 // classes] * classes
    parts = [part.images[:, 0, 0, 0].tolist() for part in (splits.train, splits.score, splits.val)]
    assert sorted(chain.from_iterable(parts)) == sorted(n % 256 for n in range(300))


@pytest.mark.parametrize("classes", CLASSES)
def test_pixels_are_normalised_by_the_published_mean_and_deviation(classes, tmp_path, monkeypatch):
    lay_down(tmp_path, classes, monkeypatch)
    splits = cifar(classes, str(tmp_path), download=False, score=100, val=100)
    image, label = splits.test[113]
    assert label == 113 % classes
    mean, deviation = STATISTICS[classes]
    by_hand = (torch.tensor([113, 30, 7]) / 255 - torch.tensor(mean)) / torch.tensor(deviation)
    torch.testing.assert_close(image[:, 30, 7], by_hand)


@pytest.mark.parametrize("augment", [True, False])
def test_only_training_pictures_are_shifted_and_only_on_demand(augment, tmp_path, monkeypatch):
    lay_down(tmp_path, 10, monkeypatch)
    splits = cifar(10, str(tmp_path), False, augment, score=100, val=100)
    torch.manual_seed(0)
    everything = list(range(100))
    for name in ("train", "score", "val", "test"):
        part = getattr(splits, name)
        first, second = part[everything][0], part[everything][0]
        assert torch.equal(first, second) == (name != "train" or not augment)


def test_a_file_with_another_checksum_is_not_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name, _ in official.CIFAR10.train_list + official.CIFAR10.test_list:
        (folder / name).write_bytes(pickle.dumps(Trap()))
    (folder / "batches.meta").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UserError, match=f"^CIFAR10 is not in {tmp_path} and dataset.download=fa"):
        cifar(10, str(tmp_path), download=False)
    assert not (tmp_path / "sprung").exists()
    pickle.loads((folder / "batches.meta").read_bytes())
    assert (tmp_path / "sprung").exists()  # the trap works
