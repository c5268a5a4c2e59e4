"""Synthetic pictures are the prototypes of their seed, noise of its deviation, clipped."""

import pytest
import torch

from pruning_lab.datasets.splits import part_indices
from pruning_lab.datasets.synthetic import synthetic

NAMES = ("train", "score", "val", "test")


@pytest.mark.parametrize("seed", [0, 7])
def test_without_noise_the_pictures_are_the_prototypes_of_the_seed(seed):
    splits = synthetic(classes=3, channels=2, size=5, noise=0, split_seed=seed, train=60, score=30,
                       val=30, test=30)  # fmt: skip
    stream = torch.Generator().manual_seed(seed)
    prototypes = (255 * torch.rand(3, 2, 5, 5, generator=stream)).round()
    assert (splits.num_classes, splits.input_size) == (3, (2, 5, 5))
    for name in NAMES:
        part = getattr(splits, name)
        assert torch.equal(part.images.float(), prototypes[part.labels])
        assert torch.bincount(part.labels).tolist() == [len(part) // 3] * 3
    image, label = splits.test[4]
    torch.testing.assert_close(image, (prototypes[label] / 255 - 0.5) / 0.3)


@pytest.mark.parametrize("noise", [0.02, 0.05])
def test_the_noise_has_its_deviation_where_nothing_is_clipped(noise):
    clean = synthetic(noise=0.0, train=2000).train
    noisy = synthetic(noise=noise, train=2000).train
    assert torch.equal(clean.labels, noisy.labels)
    middle = (clean.images > 64) & (clean.images < 191)  # 5 deviations from black and white
    difference = (noisy.images.float() - clean.images.float())[middle] / 255
    assert difference.std().item() == pytest.approx(noise, rel=0.02)
    assert difference.mean().abs() < noise / 50


def test_strong_noise_is_clipped_not_wrapped():
    noisy = synthetic(noise=10.0).train.images
    extreme = ((noisy == 0) | (noisy == 255)).float().mean()
    assert extreme > 0.9  # P(|noise| < 1) is 0.08


def test_parts_are_disjoint_samples_of_one_draw():
    splits = synthetic()
    assert [len(getattr(splits, name)) for name in NAMES] == [128, 32, 32, 64]
    pictures = torch.cat([getattr(splits, name).images for name in NAMES]).flatten(1)
    assert len(pictures.unique(dim=0)) == 256
    indices = part_indices(
        (torch.arange(256) % 4).numpy(), {"train": 128, "score": 32, "val": 32, "test": 64}, 0
    )
    assert splits.test.labels.tolist() == (indices["test"] % 4).tolist()


def test_the_global_generator_is_neither_read_nor_moved():
    torch.manual_seed(1)
    first, state = synthetic(), torch.get_rng_state()
    torch.manual_seed(2)
    second = synthetic()
    for name in NAMES:
        assert torch.equal(getattr(first, name).images, getattr(second, name).images)
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())
