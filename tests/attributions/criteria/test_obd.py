"""1/2 sum of w^2 g^2, by hand, and where Torch-Pruning forgets samples."""

import numpy as np
import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import nn

from pruning_lab.attributions.criteria.obd import OBDAttributionMetric
from tests.oracles.small import mean_square
from tests.oracles.torch_pruning import importance


def joint(case):
    return case.summed({k: (each**2).sum(2) / 2 for k, each in case.moved().items()})


def test_by_hand():
    """y = 2 h0 + h1 with h = (x1 + 3 x2, -x1): dL/dy = 2 y for target 0."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 3.0], [-1.0, 0.0]]))
        model[1].weight.copy_(torch.tensor([[2.0, 1.0]]))
    # x = (1, 1): h = (4, -1), y = 7, dL/dh = 14 (2, 1); of the weights 28 (1, 1) and 14 (1, 1)
    #   1/2 (1 * 28^2 + 9 * 28^2) = 3920 and 1/2 * 14^2 = 98
    # x = (0, 1): h = (3, 0), y = 6, dL/dh = 12 (2, 1); of the weights 24 (0, 1) and 12 (0, 1)
    #   1/2 * 9 * 24^2 = 2592 and 0
    batches = [(torch.tensor([[1.0, 1.0], [0.0, 1.0]]), torch.zeros(2, 1))]
    metric = OBDAttributionMetric(model, batches, mean_square, "cpu", "none")
    np.testing.assert_allclose(metric.run(model[0]), [[3920, 98], [2592, 0]])


def test_torch_pruning_keeps_the_last_sample_alone():
    """Its README call adds up the squares of all samples' gradients, but finds them by another key
    than it keeps them, so that each sample replaces the one before."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    x, y = torch.randn(6, 3), torch.tensor([0, 1, 1, 0, 1, 0])
    scorer = tp.importance.GroupHessianImportance(group_reduction="first", normalizer=None)
    for loss in F.cross_entropy(model(x), y, reduction="none"):
        model.zero_grad()
        loss.backward(retain_graph=True)
        scorer.accumulate_grad(model)
    theirs = importance(model, model[0], x, scorer).numpy()
    each = OBDAttributionMetric(model, [(x, y)], F.cross_entropy, "cpu", "none").run(model[0])
    np.testing.assert_allclose(theirs, 2 * each[-1], rtol=1e-4, atol=1e-9)
    assert np.abs(theirs - 2 * each.mean(0)).max() > 0.1 * each.mean(0).max()
