"""L(unit at 0) - L, by hand and against single removals by masks."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pruning_lab.attributions.criteria.leave_one_out import LeaveOneOutAttributionMetric
from pruning_lab.attributions.evidence.removals import RemovalMetric, sets_of
from tests.oracles.small import mean_square


def joint(case):
    whole = case.masked(torch.ones(3))
    without = [case.masked(1 - torch.eye(3)[unit_group]) - whole for unit_group in range(3)]
    return torch.stack(without, 1).detach().numpy()


def test_by_hand():
    model = nn.Sequential(nn.Linear(1, 3, bias=False), nn.ReLU(), nn.Linear(3, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [2.0], [-1.0]]))
        model[2].weight.copy_(torch.tensor([[3.0, -1.0, 7.0]]))
    # x = 1: units (1, 2, 0), y = 3 - 2 = 1, target 0: L = 1. Without the first y = -2, L = 4;
    # without the second y = 3, L = 9; the third is not active
    # x = 2: units (2, 4, 0), y = 2, L = 4; without the first -4, 16; without the second 6, 36
    batches = [(torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1))]
    metric = LeaveOneOutAttributionMetric(model, batches, mean_square, "cpu", "none")
    found = metric.run(model[0], find_best_evaluation_module=True)
    np.testing.assert_allclose(found, [[3, 8, 0], [12, 32, 0]])


@pytest.mark.parametrize("samples", [None, 4])
def test_equals_removals_one_by_one(samples):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 7, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(63, 3),
    ).double().eval()  # fmt: skip
    x, y = torch.randn(7, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    given = (model, [(x[:4], y[:4]), (x[4:], y[4:])], F.cross_entropy, "cpu", "none")
    for layer, units in ((0, 6), (4, 7)):
        found = LeaveOneOutAttributionMetric(*given, samples=samples).run(model[layer], True)
        slow = RemovalMetric(*given, samples=samples, removed=sets_of(units, 1))
        np.testing.assert_allclose(found, slow.run(model[layer], True), rtol=1e-9, atol=1e-12)
        assert len(found) == (samples or 7)
