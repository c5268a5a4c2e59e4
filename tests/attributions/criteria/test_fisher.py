"""1/2 (sum of a g)^2, by hand and against a loop over samples."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from pruning_lab.attributions.criteria.fisher import FisherAttributionMetric
from tests.oracles.gradients import activation_and_gradient
from tests.oracles.small import mean_square


def joint(case):
    return case.by_evidence(lambda a, g: (a * g).sum(1) ** 2 / 2)


def test_by_hand():
    """y = 2 a0 + 3 a1 with a = (x, -x): for x = 1 and target 0, y = -1 and dL/dy = -2."""
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        model[1].weight.copy_(torch.tensor([[2.0, 3.0]]))
    # a g = (1 * -2 * 2, -1 * -2 * 3) = (-4, 6); at x = 2, y = -2 and dL/dy = -4: (-16, 24)
    batches = [(torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1))]
    found = FisherAttributionMetric(model, batches, mean_square, "cpu").run(model[0])
    np.testing.assert_allclose(found, [(16 + 256) / 4, (36 + 576) / 4])


def test_equals_a_loop_over_samples():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)).double()
    x, y = torch.randn(5, 1, 4, 4).double(), torch.tensor([0, 1, 1, 0, 1])
    a, g = activation_and_gradient(model, 0, x, y)
    metric = FisherAttributionMetric(model, [(x, y)], F.cross_entropy, "cpu", "none")
    expected = (a * g).sum((2, 3)) ** 2 / 2
    np.testing.assert_allclose(metric.run(model[0]), expected, atol=1e-12)
