"""How many samples there are to score on, before they are read."""

import pytest
import torch
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from pruning_lab.attributions.batches import Batches
from pruning_lab.datasets import loader
from pruning_lab.datasets.splits import Images

DATA = TensorDataset(torch.randn(11, 3), torch.zeros(11))
IMAGES = Images(torch.zeros(11, 1, 2, 2, dtype=torch.uint8), torch.zeros(11), (0.5,), (0.5,))


@pytest.mark.parametrize(
    ("data", "count"),
    [
        (list(DataLoader(DATA, 4)), 11),
        (DataLoader(DATA, 4), 11),
        (DataLoader(DATA, 4, drop_last=True), 8),
        (DataLoader(DATA, 4, sampler=RandomSampler(DATA, num_samples=6)), 6),
        (loader(DATA, 4), 11),
        (loader(IMAGES, 4), 11),
    ],
)
def test_samples_are_told_without_being_read(data, count):
    batches = Batches(data, torch.device("cpu"))
    assert sum(len(x) for x, _ in batches.read()) == count
    assert batches.available() == batches.count() == count
    assert batches.available(5) == batches.count(5) == 5
    assert batches.available(100) == batches.count(100) == count


def test_samples_of_what_tells_nothing_are_read_to_be_counted():
    class Plain:
        def __iter__(self):
            return iter([(torch.zeros(4, 3), torch.zeros(4)), (torch.zeros(2, 3), torch.zeros(2))])

    batches = Batches(Plain(), torch.device("cpu"))
    assert batches.available() == 0
    assert batches.count() == 6
    assert batches.count(5) == 5
