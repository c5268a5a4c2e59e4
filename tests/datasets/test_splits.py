"""Parts are disjoint, stratified, seeded and of the size that was asked for."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruning_lab.datasets import loader
from pruning_lab.datasets.splits import Images, part_indices
from pruning_lab.errors import UserError

SIZES = {"train": None, "score": 40, "val": 20, "test": 60}


def labels_of(counts):
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))


@given(
    st.lists(st.integers(30, 60), min_size=2, max_size=6),
    st.integers(12, 20), st.integers(12, 20), st.integers(0, 2**20),
)  # fmt: skip
def test_parts_are_disjoint_whole_and_stratified(counts, score, test, seed):
    labels = labels_of(counts)
    sizes = {"train": None, "score": score, "test": test}
    parts = part_indices(labels, sizes, seed)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(len(labels)))
    assert (len(parts["score"]), len(parts["test"])) == (score, test)
    for part in parts.values():
        share = len(part) / len(labels)
        # two cuts, each within one of the proportional share
        assert np.abs(np.bincount(labels[part]) - share * np.array(counts)).max() <= 2


def test_the_same_seed_gives_the_same_parts_whatever_the_global_state():
    labels = labels_of([100, 100])
    first = part_indices(labels, SIZES, 3)
    np.random.seed(1)  # noqa: NPY002
    again, other = part_indices(labels, SIZES, 3), part_indices(labels, SIZES, 4)
    assert all(np.array_equal(first[name], again[name]) for name in SIZES)
    assert not np.array_equal(first["test"], other["test"])


def test_a_size_limit_leaves_samples_unused():
    parts = part_indices(labels_of([100, 100]), SIZES | {"train": 30}, 0)
    assert {name: len(part) for name, part in parts.items()} == SIZES | {"train": 30}


@pytest.mark.parametrize("size", [50, 200])
def test_one_part_alone_may_be_some_or_all(size):
    parts = part_indices(labels_of([100, 100]), {"test": size}, 0)
    assert len(set(parts["test"].tolist())) == size


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"train": None, "test": 500}, r"dataset.test=500 .* 200 samples of 2 classes"),
        ({"train": None, "test": 1}, r"dataset.test=1 .* at least one of each class"),
        ({"train": None, "test": 199}, "dataset.test=199"),
        ({"train": None, "test": 200}, "Nothing is left for dataset.train.* all 200 samples"),
        ({"train": None, "val": None}, "dataset.train and dataset.val are null"),
    ],
)
def test_impossible_sizes_are_refused(sizes, message):
    with pytest.raises(UserError, match=message):
        part_indices(labels_of([100, 100]), sizes, 0)


def pictures(count=6, augment=False):
    pixels = torch.arange(count * 2 * 3 * 3).remainder(256).to(torch.uint8)
    return Images(
        pixels.view(count, 2, 3, 3), torch.arange(count), (0.5, 0.25), (0.5, 2.0), augment
    )


def test_images_are_normalised_channel_by_channel():
    image, label = pictures()[1]
    assert label == 1
    assert image[0, 0, 1] == pytest.approx((19 / 255 - 0.5) / 0.5)
    assert image[1, 2, 2] == pytest.approx((35 / 255 - 0.25) / 2)


def test_augmentation_moves_flips_and_is_drawn_from_torchs_generator():
    images = torch.zeros(64, 1, 9, 9, dtype=torch.uint8)
    images[:, 0, 4, 4] = 255
    moved = Images(images, torch.zeros(64), (0.0,), (1.0,), augment=True)
    torch.manual_seed(0)
    first = moved[list(range(64))][0]
    torch.manual_seed(0)
    assert torch.equal(first, moved[list(range(64))][0])
    places = first[:, 0].nonzero()[:, 1:]
    assert len(places) == 64  # the dot stays in every picture
    assert places.min() == 0
    assert places.max() == 8
    assert moved.part(np.arange(3))[[0]][0][0, 0, 4, 4] == 1  # a part is plain unless it is asked


def test_augmentation_flips_left_and_right():
    images = torch.zeros(200, 1, 3, 3, dtype=torch.uint8)
    images[:, 0, :, 0] = 255
    moved = Images(images, torch.zeros(200), (0.0,), (1.0,), augment=True)
    torch.manual_seed(0)
    columns = moved[list(range(200))][0][:, 0].sum(1).argmax(1)
    assert set(columns.tolist()) == {0, 1, 2}


def test_batches_come_in_order_or_as_the_generator_says():
    plain = torch.cat([y for _, y in loader(pictures(), 4)])
    assert plain.tolist() == [0, 1, 2, 3, 4, 5]
    drawn = [
        torch.cat([y for _, y in loader(pictures(), 4, torch.Generator().manual_seed(seed))])
        for seed in (0, 0, 1)
    ]
    assert drawn[0].tolist() == drawn[1].tolist() != drawn[2].tolist()
    assert sorted(drawn[0].tolist()) == [0, 1, 2, 3, 4, 5]


def test_a_class_of_one_sample_is_refused():
    labels = np.array([0] * 100 + [1])
    with pytest.raises(UserError, match=r"dataset.test=10 is not possible"):
        part_indices(labels, {"train": None, "test": 10}, 0)


def test_the_test_part_does_not_depend_on_the_size_of_train():
    labels, sizes = np.arange(400) % 4, {"score": 40, "val": 40, "test": 80}
    whole = part_indices(labels, {"train": None, **sizes}, 0)
    limited = part_indices(labels, {"train": 100, **sizes}, 0)
    assert all(np.array_equal(whole[name], limited[name]) for name in sizes)


def test_the_first_samples_of_a_part_are_stratified():
    labels = np.repeat([0, 1, 2], [400, 200, 100])
    part = part_indices(labels, {"train": None, "score": 70}, 0)["score"]
    assert np.bincount(labels[part]).tolist() == [40, 20, 10]
    for first in (7, 21, 35):
        assert np.bincount(labels[part[:first]]).tolist() == [
            4 * first / 7,
            2 * first / 7,
            first / 7,
        ]
