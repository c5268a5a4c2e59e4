"""Distances between filters, by hand; where Torch-Pruning's are others."""

import numpy as np
import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import nn

from pruning_lab.attributions.criteria.fpgm import FPGMAttributionMetric
from tests.oracles.torch_pruning import importance


def joint(case):
    return case.by_weights(lambda w: (w[:, None] - w[None]).square().sum(2).sqrt().sum(1))


def fpgm(layer):
    return FPGMAttributionMetric(layer, [], F.cross_entropy, "cpu").run(layer)


def filled(weight):
    layer = nn.Linear(len(weight[0]), len(weight))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
    return layer


def test_by_hand():
    # the corners of a triangle with sides 3, 4, 5
    found = fpgm(filled([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]]))
    np.testing.assert_allclose(found, [3 + 4, 3 + 5, 4 + 5])


def test_filters_that_are_nearly_alike_are_told_apart():
    found = fpgm(filled([[1e4, 0.0], [1e4 + 1e-2, 0.0]]))
    apart = float(torch.tensor(1e4 + 1e-2) - 1e4)  # in float32, as the weights are
    np.testing.assert_allclose(found, [apart, apart], rtol=1e-12)


def test_torch_pruning_forgets_the_signs():
    """It takes distances between abs(w)^p, by default w^2: opposite filters seem to be one."""
    model = nn.Sequential(
        filled([[1.0, 2.0], [-1.0, -2.0], [2.0, 2.0]]), nn.ReLU(), nn.Linear(3, 2)
    )
    scorer = tp.importance.FPGMImportance(group_reduction="first", normalizer=None)
    theirs = importance(model, model[0], torch.zeros(1, 2), scorer)
    # w^2 = (1, 4), (1, 4), (4, 4): distances 0, 3, 3
    np.testing.assert_allclose(theirs, [3, 3, 6])
    metric = FPGMAttributionMetric(model, [], F.cross_entropy, "cpu")
    # w = (1, 2), (-1, -2), (2, 2): distances sqrt(20), 1, 5
    np.testing.assert_allclose(metric.run(model[0]), [20**0.5 + 1, 20**0.5 + 5, 6])
