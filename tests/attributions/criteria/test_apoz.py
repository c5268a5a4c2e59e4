"""The share of positive activations, counted by hand."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from pruning_lab.attributions import APoZAttributionMetric


def test_a_zero_is_not_positive_and_positions_are_averaged():
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(8, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
    x = torch.tensor([[[[1.0, 2.0], [0.0, -1.0]]], [[[1.0, 1.0], [1.0, 1.0]]]])
    metric = APoZAttributionMetric(model, [(x, torch.zeros(2))], F.mse_loss, "cpu", "none")
    found = metric.run(model[0], find_best_evaluation_module=True)
    np.testing.assert_array_equal(found, [[0.5, 0.25], [1, 0]])
