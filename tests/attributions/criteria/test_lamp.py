"""LAMP by hand, by its definition, and beside Torch-Pruning's."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch_pruning as tp
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pruning_lab.attributions.criteria.lamp import LAMPAttributionMetric
from tests.oracles.torch_pruning import importance


def by_definition(squares):
    return [w / max(sum(other for other in squares if other >= w), 1e-300) for w in squares]


def joint(case):
    def scores(weight):
        squares = (weight**2).sum(1).tolist()
        return torch.tensor(by_definition(squares), dtype=torch.float64)

    return case.by_weights(scores)


def lamp(weight):
    layer = nn.Linear(len(weight[0]), len(weight))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
    return LAMPAttributionMetric(layer, [], F.cross_entropy, "cpu").run(layer)


def test_by_hand():
    # squared norms 1, 25, 4 : 1 / (1 + 4 + 25), 25 / 25, 4 / (4 + 25)
    found = lamp([[1.0, 0.0], [3.0, -4.0], [0.0, 2.0]])
    np.testing.assert_allclose(found, [1 / 30, 1, 4 / 29])


def test_equal_units_score_alike_and_zeros_score_zero():
    np.testing.assert_allclose(lamp([[1.0], [-1.0], [2.0], [0.0]]), [1 / 6, 1 / 6, 1, 0])
    assert lamp([[0.0], [0.0]]).tolist() == [0, 0]


@given(st.lists(st.integers(0, 20), min_size=1, max_size=12))
def test_is_its_definition(weights):
    found = lamp([[float(w)] for w in weights])
    assert found.tolist() == pytest.approx(by_definition([w**2 for w in weights]))


def test_is_torch_prunings_where_no_norms_are_equal():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(20, 3))
    scorer = tp.importance.LAMPImportance(group_reduction="first")
    expected = importance(model, model[0], torch.zeros(1, 2, 4, 4), scorer)
    scores = LAMPAttributionMetric(model, [], F.cross_entropy, "cpu").run(model[0])
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
