"""Sum of |dL/da| against a hand count and a loop over samples."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from pruning_lab.attributions import SensitivityAttributionMetric
from tests.attributions.criteria.test_taylor import by_hand, mean_square
from tests.oracles.gradients import activation_and_gradient


def test_by_hand():
    model, batches = by_hand()  # g = (-2 * 2, -2 * 3)
    metric = SensitivityAttributionMetric(model, batches, mean_square, "cpu")
    np.testing.assert_allclose(metric.run(model[0]), [4, 6])


def test_equals_a_loop_over_samples_and_sums_over_positions():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(12, 2)).double()
    x, y = torch.randn(5, 1, 4, 4).double(), torch.tensor([0, 1, 1, 0, 1])
    _, g = activation_and_gradient(model, 0, x, y)
    metric = SensitivityAttributionMetric(model, [(x, y)], F.cross_entropy, "cpu", "none")
    np.testing.assert_allclose(metric.run(model[0]), g.abs().sum((2, 3)), atol=1e-12)
