"""Sums of squared weights, by hand and beside Torch-Pruning's."""

import numpy as np
import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import nn

from pruning_lab.attributions.criteria.l2_norm import L2NormAttributionMetric
from tests.oracles.torch_pruning import importance


def joint(case):
    return case.by_weights(lambda weight: (weight**2).sum(1))


def test_by_hand():
    layer = nn.Linear(2, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -2.0], [0.0, 0.5], [3.0, 4.0]]))
        layer.bias.fill_(100)
    scores = L2NormAttributionMetric(layer, [], F.cross_entropy, "cpu").run(layer)
    assert scores.tolist() == [5, 0.25, 25]


def test_is_torch_prunings_magnitude():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(20, 3))
    scorer = tp.importance.GroupMagnitudeImportance(2, group_reduction="first", normalizer=None)
    expected = importance(model, model[0], torch.zeros(1, 2, 4, 4), scorer)
    scores = L2NormAttributionMetric(model, [], F.cross_entropy, "cpu").run(model[0])
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
