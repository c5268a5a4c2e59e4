"""Rises of the loss as they are kept, and their mean over all removals."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pruning_lab.attributions.players import units_of_module
from pruning_lab.attributions.removals import RemovalMetric, sets_of
from pruning_lab.errors import UserError
from pruning_lab.truth import Removals, grid, mean_rise


def test_the_mean_is_exact_for_straight_lines_and_without_gaps():
    assert grid(64, 32).tolist() == list(range(2, 65, 2))
    assert grid(10, 32).tolist() == grid(10, None).tolist() == list(range(1, 11))
    counts = grid(64, 8)
    assert mean_rise(3.0 * counts, counts) == pytest.approx(3 * 65 / 2)
    every = np.random.default_rng(0).random((2, 20))
    np.testing.assert_allclose(mean_rise(every, grid(20, None)), every.mean(1))


def test_the_mean_by_hand():
    # after 2 and 4 of 4 units 6 and 10: on straight lines 3, 6, 8, 10
    assert mean_rise(np.array([6.0, 10.0]), np.array([2, 4])) == pytest.approx(27 / 4)


@pytest.fixture
def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).double().eval()
    x = torch.randn(9, 3, dtype=torch.float64)
    return model, DataLoader(TensorDataset(x, torch.tensor([0, 1, 1] * 3)), 4)


def test_what_is_measured_is_that_of_the_metric_and_kept(network, tmp_path, monkeypatch):
    model, batches = network
    given = (model, batches, torch.device("cpu"), 6, tmp_path / "kept")
    players, sets = units_of_module(model[0]), [sets_of(5, 2), sets_of(5, 1)]
    found = Removals(*given).rises(players, sets)
    for each, rises in zip(sets, found, strict=True):
        metric = RemovalMetric(model, batches, F.cross_entropy, "cpu", "none", samples=6)
        expected = metric.run(model[0], True, removed=each)
        assert rises.shape == (6, len(each))
        np.testing.assert_allclose(rises, expected, rtol=1e-12)
    asked, estimate = [], RemovalMetric.estimate

    def watched(self, *args):
        asked.append(len(self.removed))
        return estimate(self, *args)

    monkeypatch.setattr(RemovalMetric, "estimate", watched)
    again = Removals(*given).rises(players, [sets[1], sets_of(5, 3), sets[0]])
    assert asked == [10]  # the sets of three alone
    np.testing.assert_array_equal(again[0], found[1])
    np.testing.assert_array_equal(again[2], found[0])
    Removals(*given[:3], 5, given[4]).rises(players, sets)  # other samples
    assert asked == [10, 15]


def test_a_damaged_file_is_named(network, tmp_path):
    model, batches = network
    removals = Removals(model, batches, torch.device("cpu"), 6, tmp_path)
    removals.rises(units_of_module(model[0]), [sets_of(5, 1)])
    (path,) = tmp_path.iterdir()
    path.write_bytes(b"torn")
    with pytest.raises(UserError, match=f"{path.name} is damaged"):
        removals.rises(units_of_module(model[0]), [sets_of(5, 1)])
