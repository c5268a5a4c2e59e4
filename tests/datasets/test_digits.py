"""The digits are scikit-learn's, pixel for pixel, resized and normalised by hand."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from pruning_lab.datasets.digits import digits
from pruning_lab.datasets.splits import part_indices

SIZES = {"train": None, "score": 256, "val": 180, "test": 360}
NAMES = ("train", "score", "val", "test")


def bilinear(image, size):
    """Pixel centres at (i + 1/2) / size, the border repeated."""
    at = ((np.arange(size) + 0.5) * len(image) / size - 0.5).clip(0, len(image) - 1)
    low = np.floor(at).astype(int)
    high, weight = np.minimum(low + 1, len(image) - 1), at - low
    rows = (1 - weight)[:, None] * image[low] + weight[:, None] * image[high]
    return (1 - weight) * rows[:, low] + weight * rows[:, high]


@pytest.fixture(scope="module")
def splits():
    return digits()


def test_a_picture_is_resized_and_normalised_by_hand(splits):
    data, indices = load_digits(), part_indices(load_digits().target, SIZES, 0)
    for name in NAMES:
        image, label = getattr(splits, name)[5]
        original = indices[name][5]
        grey = bilinear(data.images[original], 32) * 255 / 16
        assert label == data.target[original]
        assert image.shape == (1, 32, 32)
        assert image.dtype == torch.float32
        pixels = image[0].numpy() * 0.376 + 0.305
        np.testing.assert_allclose(pixels * 255, grey, atol=0.501)  # rounded to a byte
        np.testing.assert_allclose(pixels * 255, np.round(pixels * 255), atol=1e-3)


def test_the_parts_have_every_class_in_its_share(splits):
    labels = load_digits().target
    for name in ("score", "val", "test"):
        found = torch.bincount(getattr(splits, name).labels).numpy()
        share = SIZES[name] / 1797
        assert np.abs(found - share * np.bincount(labels)).max() < 1.5  # cut from what is left
    total = sum(torch.bincount(getattr(splits, name).labels) for name in NAMES)
    assert total.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_three_channels_repeat_the_grey_one(splits):
    coloured = digits(channels=3)
    for name in NAMES:
        grey, three = getattr(splits, name), getattr(coloured, name)
        assert three.images.shape == (len(grey), 3, 32, 32)
        assert torch.equal(three.images, grey.images.expand(-1, 3, -1, -1))
    assert torch.equal(coloured.val[3][0], splits.val[3][0].expand(3, -1, -1))


def test_the_split_seed_alone_moves_the_pictures(splits):
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    again, other = digits(), digits(split_seed=1)
    for name in NAMES:
        assert torch.equal(getattr(again, name).images, getattr(splits, name).images)
        assert not torch.equal(getattr(other, name).images, getattr(splits, name).images)
