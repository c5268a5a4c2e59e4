"""What sets of units cost when they go, against models whose units are put to 0 by hand."""

from itertools import combinations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pruning_lab.attributions.evidence import removals
from pruning_lab.attributions.evidence.removals import RemovalMetric, first_of, oracle_rank, sets_of
from pruning_lab.errors import UserError


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3)
    ).double()
    model[1].running_mean.normal_()
    x, y = torch.randn(7, 1, 6, 6).double(), torch.randint(3, (7,))
    return model.eval(), [(x[:4], y[:4]), (x[4:], y[4:])]


def by_hand(network, sets):
    """(samples, sets)"""
    model, data = network
    x, y = (torch.cat(each) for each in zip(*data, strict=True))
    with torch.no_grad():
        activation = model[:3](x)
        losses = []
        for units in ((), *sets):
            masked = activation.clone()
            masked[:, list(units)] = 0
            losses.append(F.cross_entropy(model[3:](masked), y, reduction="none"))
    return torch.stack(losses[1:], 1) - losses[0][:, None]


@pytest.mark.parametrize("size", [0, 1, 2, 3, 5])
def test_rises_are_those_of_a_network_without_the_units(network, size, monkeypatch):
    monkeypatch.setattr(removals, "CHUNK", 3)
    model, data = network
    metric = RemovalMetric(model, data, F.cross_entropy, "cpu", removed=sets_of(5, size))
    expected = by_hand(network, list(combinations(range(5), size)))
    np.testing.assert_allclose(metric.run(model[0], True), expected.mean(0), atol=1e-12)
    metric = RemovalMetric(model, data, F.cross_entropy, "cpu", "none")
    found = metric.run(model[0], True, removed=sets_of(5, size))
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_sets_are_in_lexicographic_order():
    assert [tuple(row.nonzero()[0]) for row in sets_of(4, 2)] == list(combinations(range(4), 2))
    assert sets_of(3, 0).tolist() == [[False] * 3]


def test_the_first_of_an_order():
    assert first_of(np.array([2, 0, 1]), [0, 1, 2]).tolist() == [
        [False, False, False], [False, False, True], [True, False, True],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        (sets_of(4, 1), "removed has 4 units; the layer has 5"),
        (None, "array of booleans"),
        (np.zeros((2, 5)), "array of booleans"),
        (np.zeros(5, bool), "array of booleans"),
        ([[True] * 5], "array of booleans"),
        (np.zeros((0, 5), bool), "one set or more"),
    ],
)
def test_what_does_not_fit_is_refused(network, removed, message):
    model, data = network
    with pytest.raises(UserError, match=message):
        RemovalMetric(model, data, F.cross_entropy, "cpu", removed=removed).run(model[0])


def test_the_rank_counts_the_sets_that_do_less_harm():
    # sets of two of four units: 01 02 03 12 13 23
    rises = np.array([0.5, 0.1, 0.3, 0.9, 0.2, 0.7])
    assert oracle_rank(np.array([1, 5, 2, 6]), 2, rises) == 0  # removes 0 and 2
    assert oracle_rank(np.array([5, 1, 2, 6]), 2, rises) == 1  # removes 1 and 2
    assert oracle_rank(np.array([2, 6, 5, 1]), 2, rises) == pytest.approx(2 / 5)  # 0 and 3
    rows = np.stack([rises, -rises])
    assert oracle_rank(np.array([1, 5, 2, 6]), 2, rows).tolist() == [0, 1]


def test_too_many_sets_are_refused_and_none():
    with pytest.raises(UserError, match=r"60 units have 5461512 sets of size=5; from 1 to 100000"):
        sets_of(60, 5)
    with pytest.raises(UserError, match=r"3 units have 0 sets of size=4"):
        sets_of(3, 4)


@pytest.mark.parametrize("digits", [9, 1])
def test_chance_is_at_one_half(digits):
    rng = np.random.default_rng(0)
    rises = rng.random(45).round(digits)  # with ties, too
    found = [oracle_rank(rng.random(10), 2, rises) for _ in range(4000)]
    assert np.mean(found) == pytest.approx(0.5, abs=0.02)
