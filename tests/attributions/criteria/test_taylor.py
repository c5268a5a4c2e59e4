"""|a g| against a hand count and a loop over samples."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pruning_lab.attributions import TaylorAttributionMetric
from tests.oracles.gradients import activation_and_gradient
from tests.oracles.small import mean_square


def by_hand():
    """y = 2 a0 + 3 a1 with a = (x, -x): for x = 1 and target 0, y = -1 and dL/dy = -2."""
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        model[1].weight.copy_(torch.tensor([[2.0, 3.0]]))
    return model, [(torch.tensor([[1.0]]), torch.tensor([[0.0]]))]


@pytest.mark.parametrize(
    # a g = (1 * -2 * 2, -1 * -2 * 3) = (-4, 6)
    ("signed", "expected"),
    [(False, [4, 6]), (True, [4, -6])],
)
def test_by_hand(signed, expected):
    model, batches = by_hand()
    metric = TaylorAttributionMetric(model, batches, mean_square, "cpu", signed=signed)
    np.testing.assert_allclose(metric.run(model[0]), expected)


@pytest.mark.parametrize("signed", [False, True])
def test_equals_a_loop_over_samples(signed):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)).double()
    x, y = torch.randn(5, 1, 4, 4).double(), torch.tensor([0, 1, 1, 0, 1])
    a, g = activation_and_gradient(model, 0, x, y)
    rise = -(a * g).sum((2, 3))
    metric = TaylorAttributionMetric(model, [(x, y)], F.cross_entropy, "cpu", "none")
    expected = rise if signed else rise.abs()
    np.testing.assert_allclose(metric.run(model[0], signed=signed), expected, atol=1e-12)
