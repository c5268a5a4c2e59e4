"""Means of abs(a), by hand."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from pruning_lab.attributions.criteria.mean_activation import MeanActivationAttributionMetric


def joint(case):
    return case.by_evidence(lambda a, g: a.abs().mean(1))


def test_by_hand():
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.Flatten(), nn.Linear(8, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, -2.0]).view(2, 1, 1, 1))
    x = torch.tensor([[[[1.0, -3.0], [0.0, 2.0]]], [[[4.0, 0.0], [0.0, 0.0]]]])
    metric = MeanActivationAttributionMetric(
        model, [(x, torch.tensor([0, 1]))], F.cross_entropy, "cpu", "none"
    )
    # |x| sums to 6 and 4 over four pixels; the second unit doubles it
    np.testing.assert_allclose(metric.run(model[0]), [[1.5, 3], [1, 2]])
    np.testing.assert_allclose(metric.run(model[0]).mean(0), [1.25, 2.5])
