"""How many samples there are to score on, and that they are the same at each reading."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    TensorDataset,
)

from pruning_lab.attributions.observation.batches import Batches, Made
from pruning_lab.datasets import loader
from pruning_lab.datasets.splits import Images
from pruning_lab.errors import UserError

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


class Consumed(IterableDataset):
    def __init__(self):
        self.rest = iter([(torch.full((3,), float(k)), torch.tensor(k)) for k in range(40)])

    def __iter__(self):
        return self.rest


class Drawing(Dataset):
    """Draws from a stream of its own, which nobody can put back."""

    def __init__(self):
        self.stream = np.random.default_rng(0)

    def __len__(self):
        return 9

    def __getitem__(self, index):
        return torch.full((3,), index + 1.0) * self.stream.random(), torch.tensor(index)


class Longer(Sampler):
    """Says that it has more samples than it gives."""

    def __iter__(self):
        return iter(range(5))

    def __len__(self):
        return 11


class Other:
    """Gives what it is told at each reading."""

    def __init__(self, *readings):
        self.readings = iter(readings)

    def __iter__(self):
        return iter(next(self.readings))


def pairs(*targets):
    return [(torch.zeros(1, 2), torch.tensor([each])) for each in targets]


def read(batches, limit=None):
    return [int(each) for _, target in batches.read(limit) for each in target]


@pytest.mark.parametrize("data", [Consumed(), Drawing()])
def test_data_that_are_others_when_they_are_read_again_are_refused(data):
    batches = Batches(DataLoader(data, batch_size=4), torch.device("cpu"))
    batches.first(2)
    with pytest.raises(UserError, match="another sample 0 when it was read again"):
        list(batches.read())


def test_a_part_is_the_beginning_of_the_whole():
    readings = [pairs(1, 2, 3), pairs(1, 2), pairs(1, 2, 3), pairs(1, 2, 4), pairs(1, 2)]
    batches = Batches(Other(*readings), torch.device("cpu"))
    assert [read(batches, limit) for limit in (1, 2, None)] == [[1], [1, 2], [1, 2, 3]]
    with pytest.raises(UserError, match="another sample 2"):
        read(batches)
    with pytest.raises(UserError, match="gave 2 samples and not 3"):
        read(batches)


def test_reading_starts_at_any_sample():
    targets = torch.arange(1, 6).split((2, 1, 2))
    batches = Batches([(torch.zeros(len(own), 2), own) for own in targets], torch.device("cpu"))
    for start in range(6):
        for limit in (1, 4, 5, None):
            found = [int(each) for _, own in batches.read(limit, start) for each in own]
            assert found == [1, 2, 3, 4, 5][:limit][start:]


def test_fewer_samples_than_the_data_say_they_have_are_refused():
    loader = DataLoader(DATA, 4, sampler=Longer())
    with pytest.raises(UserError, match="gave 5 samples and not 11"):
        list(Batches(loader, torch.device("cpu")).read())


def test_another_scoring_may_shuffle_in_another_way():
    batches = Batches(DataLoader(DATA, 4, shuffle=True), torch.device("cpu"))
    first = [x for x, _ in batches.read()]
    assert all(map(torch.equal, first, [x for x, _ in batches.read()]))
    torch.manual_seed(torch.initial_seed() + 1)
    with pytest.raises(UserError, match="another sample"):
        list(batches.read())
    list(batches.anew().read())


def test_a_target_for_every_sample():
    with pytest.raises(UserError, match=r"there are inputs \(3, 2\) and target \(2,\)"):
        list(Batches([(torch.zeros(3, 2), torch.zeros(2))], torch.device("cpu")).read())


@pytest.mark.parametrize(
    ("targets", "expected"), [([3, 3, 5, 4], [3, 5]), ([3, 3], [3, 3]), ([3], [3, 3])]
)
def test_a_pair_has_two_targets_where_there_are_two(targets, expected):
    assert Batches(pairs(*targets), torch.device("cpu")).pair()[1].tolist() == expected


@torch.no_grad()
def test_memory_is_that_of_all_tensors_also_of_freed_ones():
    model, x = nn.Sequential(*[nn.Linear(1000, 1000) for _ in range(20)]), torch.zeros(2, 1000)
    counts = set()
    for _ in range(5):
        with Made(model) as made:
            model(x)
        counts.add((made.bytes, made.largest))
    assert counts == {(20 * 8000, 8000)}
    with Made(model) as made:
        model[0](x).view(4, 500).relu_()  # views and changes in place make no tensor
    assert made.bytes == 8000
