"""Pictures on disk: classes by name, centres cut out by hand, parts that share nothing."""

from itertools import chain

import numpy as np
import pytest
import torch
from PIL import Image

from pruning_lab.datasets.image_folder import image_folder
from pruning_lab.errors import UserError

MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def write(root, folder, counts, suffix="png", shape=(8, 16)):
    """Random pictures; returns them by class."""
    stream, found = np.random.default_rng(0), {}
    for name, count in counts.items():
        place = root / folder / name
        place.mkdir(parents=True)
        found[name] = stream.integers(0, 256, (count, *shape, 3), dtype=np.uint8)
        for number, pixels in enumerate(found[name]):
            Image.fromarray(pixels).save(place / f"{number:02}.{suffix}")
    return found


@pytest.fixture
def root(tmp_path):
    write(tmp_path, "train", {"bee": 20, "ape": 10})
    write(tmp_path, "test", {"bee": 8, "ape": 4})
    return tmp_path


def test_the_centre_is_cut_out_and_normalised_by_hand(tmp_path):
    """8 by 16 pixels, size 7: the shorter side has 8/7 of 7 already; rows 0-6, columns 4-10."""
    write(tmp_path, "train", {"bee": 20, "ape": 10})
    pictures = write(tmp_path, "test", {"bee": 8, "ape": 4})
    splits = image_folder(str(tmp_path), size=7, score=6, val=6)
    assert (splits.num_classes, splits.input_size, len(splits.test)) == (2, (3, 7, 7), 12)
    expected = [(0, picture) for picture in pictures["ape"]]  # classes in the order of the alphabet
    expected += [(1, picture) for picture in pictures["bee"]]
    for index, (cls, picture) in enumerate(expected):
        image, label = splits.test[index]
        by_hand = (picture[0:7, 4:11] / 255 - MEAN) / DEVIATION
        assert label == cls
        np.testing.assert_allclose(image.permute(1, 2, 0), by_hand, atol=1e-5)


def test_larger_pictures_are_made_smaller_first(tmp_path):
    """Two colours, half and half: after the resize and the cut they still are."""
    for folder in ("train", "test"):
        for name in ("ape", "bee"):
            (tmp_path / folder / name).mkdir(parents=True)
            for number in range(6):
                pixels = np.zeros((64, 64, 3), np.uint8)
                pixels[:, 32:] = 255
                Image.fromarray(pixels).save(tmp_path / folder / name / f"{number}.png")
    image = image_folder(str(tmp_path), size=14, score=4, val=4).test[0][0]
    pixels = image.permute(1, 2, 0).numpy() * DEVIATION + MEAN
    np.testing.assert_allclose(pixels[:, :6], 0, atol=0.02)
    np.testing.assert_allclose(pixels[:, 8:], 1, atol=0.02)


def test_parts_of_the_training_folder_share_nothing(root):
    splits = image_folder(str(root), size=7, score=6, val=9)
    parts = [splits.train.indices, splits.score.indices, splits.val.indices]
    assert [len(part) for part in parts] == [15, 6, 9]
    assert sorted(chain.from_iterable(parts)) == list(range(30))
    counts = [np.bincount([splits.val.dataset.targets[i] for i in part]).tolist() for part in parts]
    assert counts == [[5, 10], [2, 4], [3, 6]]
    assert {splits.train.dataset.root, splits.score.dataset.root} == {str(root / "train")}
    assert splits.test.dataset.root == str(root / "test")


def test_a_limited_test_split_is_stratified_and_seeded(root):
    drawn = [
        image_folder(str(root), size=7, score=6, val=6, test=6, split_seed=seed).test
        for seed in (0, 0, 1)
    ]
    assert sorted(drawn[0].dataset.targets[i] for i in drawn[0].indices) == [0, 0, 1, 1, 1, 1]
    assert drawn[0].indices == drawn[1].indices != drawn[2].indices


@pytest.mark.parametrize("augment", [True, False])
def test_only_training_pictures_are_varied_and_only_on_demand(root, augment):
    splits = image_folder(str(root), size=7, augment=augment, score=6, val=6)
    torch.manual_seed(0)
    for name in ("train", "score", "val", "test"):
        part = getattr(splits, name)
        first, second = (torch.stack([part[i][0] for i in range(6)]) for _ in range(2))
        assert torch.equal(first, second) == (name != "train" or not augment)
        assert first.shape == (6, 3, 7, 7)


def test_jpegs_and_other_folder_names(tmp_path):
    for folder in ("fit", "val"):
        for shade, name in ((0, "ape"), (200, "bee")):
            place = tmp_path / folder / name
            place.mkdir(parents=True)
            for number in range(6):
                Image.new("RGB", (16, 16), (shade, 0, 0)).save(place / f"{number}.jpg")
    splits = image_folder(
        str(tmp_path), train_folder="fit", test_folder="val", size=7, score=4, val=4
    )
    for index, shade in ((0, 0), (11, 200)):
        red = splits.test[index][0][0] * 0.229 + 0.485
        assert torch.allclose(red, torch.tensor(shade / 255), atol=0.02)
    assert [len(p) for p in (splits.train, splits.score, splits.val, splits.test)] == [4, 4, 4, 12]


def test_a_missing_test_folder_is_named(tmp_path):
    write(tmp_path, "train", {"ape": 3})
    with pytest.raises(UserError, match=rf"^{tmp_path}/test is not a folder.*dataset.test_folder"):
        image_folder(str(tmp_path))


def test_a_class_without_pictures_is_named(tmp_path):
    write(tmp_path, "train", {"ape": 3, "bee": 3})
    write(tmp_path, "test", {"ape": 3})
    (tmp_path / "test" / "bee").mkdir()
    with pytest.raises(UserError, match=rf"^{tmp_path}/test cannot be read: .*bee"):
        image_folder(str(tmp_path))


def test_default_sizes_of_a_small_folder_are_refused_with_its_numbers(root):
    with pytest.raises(UserError, match=r"dataset.val=1000 .* 30 samples of 2 classes"):
        image_folder(str(root))
