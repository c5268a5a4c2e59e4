"""Shifted pictures against what the shift says, pixel by pixel."""

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch.utils.data import TensorDataset

from experiments.compare_criteria.shifts import KERNEL, NOISE, PIXELS, SIGMA, shifted


def pictures():
    draw = torch.Generator().manual_seed(3)
    return TensorDataset(torch.randn(200, 2, 9, 8, generator=draw), torch.arange(200) % 4)


def test_noise_has_its_size_and_labels_stay():
    data = pictures()
    x, targets = shifted(data)["noise"].tensors
    added = (x - data.tensors[0]) / data.tensors[0].std()
    assert abs(added.std() - NOISE) < 0.01
    assert abs(added.mean()) < 0.01
    assert torch.equal(targets, data.tensors[1])


def test_blur_is_a_gaussian_filter():
    data = pictures()
    x, _ = shifted(data)["blur"].tensors
    radius = KERNEL // 2
    expected = gaussian_filter(
        data.tensors[0].numpy(), SIGMA, axes=(2, 3), mode="mirror", radius=radius
    )
    np.testing.assert_allclose(x.numpy(), expected, atol=1e-5)


def test_pictures_move_by_two_pixels_to_each_of_four_corners():
    data = pictures()
    x, _ = shifted(data)["translation"].tensors
    found = set()
    for moved, picture in zip(x, data.tensors[0], strict=True):
        padded = np.pad(picture.numpy(), ((0, 0), (PIXELS,) * 2, (PIXELS,) * 2), mode="edge")
        corners = [
            (down, right)
            for down in (0, 2 * PIXELS)
            for right in (0, 2 * PIXELS)
            if np.array_equal(moved.numpy(), padded[:, down : down + 9, right : right + 8])
        ]
        assert len(corners) == 1
        found.add(corners[0])
    assert len(found) == 4


def test_the_same_pictures_are_shifted_alike():
    one, other = shifted(pictures()), shifted(pictures())
    for name in ("noise", "blur", "translation"):
        assert torch.equal(one[name].tensors[0], other[name].tensors[0])
