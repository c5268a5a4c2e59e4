"""The Banzhaf value: by hand, by all coalitions, and how often its interval holds it."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pruning_lab.attributions.criteria.banzhaf import BanzhafAttributionMetric
from pruning_lab.attributions.unit_groups import units_of_module
from pruning_lab.errors import UserError
from tests.oracles.small import difference, mean_square


def joint(case):
    """The mean over the pairs that belong to the seed."""
    values = np.zeros((len(case.x), 3))
    for sample, pair in itertools.product(range(len(case.x)), range(32)):
        kept = np.random.default_rng([7, sample, pair]).random(3) < 0.5
        own, other = (
            float(case.masked(torch.tensor(mask).double())[sample].detach())
            for mask in (kept, ~kept)
        )
        values[sample] += np.where(kept, other - own, own - other) / 32
    return values


def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    return model.double(), torch.randn(6, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1, 0])


def test_by_hand():
    """y = 3 a - b with a = b = 1 and target 0: L = 4, 9 without b, 1 without a, 0 without both."""
    model, batches = difference()
    metric = BanzhafAttributionMetric(model, batches, mean_square, "cpu", masks=4096)
    found = metric.estimate([units_of_module(model[0])])[0]
    # a: with b 1 - 4, without b 0 - 9; b: with a 9 - 4, without a 0 - 1
    expected = np.array([(-3 - 9) / 2, (5 - 1) / 2])  # a pair gives b -4 or 8
    assert (np.abs(found.scores - expected) < 4 * found.sampling_error).all()
    assert (found.sampling_error < 0.15).all()


def by_all_coalitions(model, x, y):
    hidden, values = model[:2](x), torch.zeros(len(x), 4, dtype=torch.float64)
    for others in itertools.product([0.0, 1.0], repeat=3):
        for unit in range(4):
            mask = torch.tensor([*others[:unit], 1.0, *others[unit:]])
            with_it, without = (
                F.cross_entropy(model[2:](hidden * each), y, reduction="none")
                for each in (mask, mask * (torch.arange(4) != unit))
            )
            values[:, unit] += (without - with_it) / 8
    return values.detach().numpy()


def test_comes_near_the_mean_over_all_coalitions():
    model, x, y = network()
    expected = by_all_coalitions(model, x, y)
    metric = BanzhafAttributionMetric(model, [(x, y)], F.cross_entropy, "cpu", "none", masks=4000)
    found = metric.run(model[0], True)
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
    wide = BanzhafAttributionMetric(model, [(x, y)], F.cross_entropy, "cpu", masks=40)
    held = []
    for seed in range(80):
        wide.seed = seed
        estimate = wide.estimate([units_of_module(model[0])], True)[0]
        low, high = estimate.interval("sampling_error")
        held.append((low <= expected.mean(0)) & (expected.mean(0) <= high))
    assert 0.91 <= np.mean(held) <= 0.99  # 95 %, over 80 draws for four units


def test_masks_come_in_pairs():
    model, x, y = network()
    with pytest.raises(UserError, match="masks=5 is not possible; they come in pairs"):
        BanzhafAttributionMetric(model, [(x, y)], F.cross_entropy, "cpu", masks=5)
