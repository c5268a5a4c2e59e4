"""Shares of the classes counted by hand; the official test part is never trained on."""

import random
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning_lab.datasets.official import official_splits
from pruning_lab.datasets.splits import part_indices
from pruning_lab.errors import UserError


@settings(deadline=None)
@given(st.lists(st.integers(5, 60), min_size=2, max_size=8), st.data(), st.integers(0, 2**20))
def test_a_part_is_within_one_sample_of_the_proportional_share(counts, data, seed):
    total, classes = sum(counts), len(counts)
    size = data.draw(st.integers(classes, total - classes))
    labels = np.repeat(np.arange(classes), counts)
    parts = part_indices(labels, {"train": None, "test": size}, seed)
    for name, length in {"train": total - size, "test": size}.items():
        found = np.bincount(labels[parts[name]], minlength=classes)
        assert found.sum() == length
        assert np.abs(found - length * np.array(counts) / total).max() < 1


@pytest.mark.parametrize("train", [None, 80, 60])
def test_four_parts_of_three_classes_by_hand(train):
    labels = np.repeat([0, 1, 2], [100, 60, 40])
    parts = part_indices(labels, {"train": train, "score": 20, "val": 40, "test": 60}, 0)
    assert {name: np.bincount(labels[part]).tolist() for name, part in parts.items()} == {
        "train": [30, 18, 12] if train == 60 else [40, 24, 16],
        "score": [10, 6, 4], "val": [20, 12, 8], "test": [30, 18, 12],
    }  # fmt: skip
    assert len(set(np.concatenate(list(parts.values())).tolist())) == 120 + (train or 80)


def test_the_global_generators_are_neither_read_nor_moved():
    def split(seed):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        before = (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist())  # noqa: NPY002
        parts = part_indices(np.arange(90) % 3, {"train": None, "test": 30}, 7)
        after = (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist())  # noqa: NPY002
        assert before == after
        return {name: part.tolist() for name, part in parts.items()}

    assert split(1) == split(2)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            {"train": None, "score": 150, "test": 60},
            "dataset.score=150 is not possible: 140 samples of 2 classes",  # 200 less test
        ),
        ({"train": None, "test": 0}, "dataset.test=0 is not possible; it is a whole number from 1"),
        ({"train": None, "test": 20.0}, "dataset.test=20.0 is not possible"),
        ({"train": None, "test": "abc"}, "dataset.test=abc is not possible"),
        ({"train": None, "test": -5}, "dataset.test=-5 is not possible"),
        ({"train": 199, "test": 10}, "dataset.train=199 is not possible: 190 samples"),
    ],
)
def test_a_refusal_names_what_was_asked_and_what_is_there(sizes, message):
    with pytest.raises(UserError, match=message):
        part_indices(np.arange(200) % 2, sizes, 0)


def test_the_smallest_possible_part_has_one_sample_a_class():
    labels = np.arange(20) % 4
    parts = part_indices(labels, {"train": None, "test": 4}, 0)
    assert sorted(labels[parts["test"]].tolist()) == [0, 1, 2, 3]
    parts = part_indices(labels, {"train": None, "test": 16}, 0)
    assert sorted(labels[parts["train"]].tolist()) == [0, 1, 2, 3]


def official(first, count, counts):
    """Pictures whose one pixel is their number, from ``first``; classes in those proportions."""
    data = torch.arange(first, first + count, dtype=torch.uint8)[:, None, None]
    return SimpleNamespace(data=data, targets=torch.arange(count) % sum(counts) // counts[0])


def numbers(images):
    return images.images.flatten().tolist()


@pytest.mark.parametrize("seed", [0, 1])
def test_the_official_test_part_is_the_test_split_whatever_the_seed(seed):
    parts = official(0, 90, (2, 1)), official(100, 30, (2, 1))
    sizes = {"train": 30, "score": 12, "val": 18, "test": None}
    splits = official_splits(parts, ((0.5,), (0.5,)), sizes, seed)
    assert numbers(splits.test) == list(range(100, 130))
    assert splits.test.labels.tolist() == parts[1].targets.tolist()
    inner = [numbers(part) for part in (splits.train, splits.score, splits.val)]
    assert [len(part) for part in inner] == [30, 12, 18]
    assert len(set(chain.from_iterable(inner))) == 60
    assert max(chain.from_iterable(inner)) < 90


def test_a_limited_test_split_is_a_stratified_part_of_the_official_one():
    parts = official(0, 90, (2, 1)), official(100, 30, (2, 1))
    sizes = {"train": None, "score": 12, "val": 18, "test": 12}
    drawn = [official_splits(parts, ((0.5,), (0.5,)), sizes, seed).test for seed in (0, 0, 1)]
    assert torch.bincount(drawn[0].labels).tolist() == [8, 4]
    assert set(numbers(drawn[0])) <= set(range(100, 130))
    assert numbers(drawn[0]) == numbers(drawn[1]) != numbers(drawn[2])


def test_every_label_goes_with_its_own_picture():
    parts = official(0, 90, (2, 1)), official(100, 30, (2, 1))
    sizes = {"train": None, "score": 12, "val": 18, "test": 12}
    splits = official_splits(parts, ((0.5,), (0.5,)), sizes, 3)
    for part in (splits.train, splits.score, splits.val, splits.test):
        for number, label in zip(numbers(part), part.labels.tolist(), strict=True):
            assert label == (number % 100 if number >= 100 else number) % 3 // 2
