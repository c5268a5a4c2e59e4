"""Random scores: uniform, reproducible, new after a cut."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from pruning_lab.attributions import RandomAttributionMetric


def scores(units, seed=0, layer=0):
    model = nn.Sequential(nn.Linear(2, units), nn.ReLU(), nn.Linear(units, units))
    batch = (torch.randn(3, 2), torch.zeros(3, dtype=torch.long))
    metric = RandomAttributionMetric(model, [batch], F.cross_entropy, "cpu", seed=seed)
    return metric.run(model[layer])


def test_scores_are_uniform_between_0_and_1():
    found = scores(4000)
    assert found.min() >= 0
    assert found.max() < 1
    np.testing.assert_allclose(np.histogram(found, 4, (0, 1))[0] / 4000, 0.25, atol=0.03)


def test_the_seed_the_layer_and_the_width_each_make_another_draw():
    base = scores(50)
    np.testing.assert_array_equal(base, scores(50))
    for other in (scores(50, seed=1), scores(50, layer=2), scores(51)[:50]):
        assert abs(np.corrcoef(base, other)[0, 1]) < 0.5
        assert not np.array_equal(base, other)
