"""Standard deviations of abs(a), by hand, and their errors by drawing the data again."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pruning_lab.attributions.criteria.std_activation import StdActivationAttributionMetric
from pruning_lab.attributions.unit_groups import UnitGroups, units_of_module


def joint(case):
    return np.array([float(a.abs().std(correction=0)) for a, _ in case.evidence()])


def network():
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.Flatten(), nn.Linear(8, 2)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, -2.0]).view(2, 1, 1, 1))
    return model


def metric(model, x, at_once=2, reduction="mean"):
    batches = [(some, torch.zeros(len(some), dtype=int)) for some in x.split(at_once)]
    return StdActivationAttributionMetric(model, batches, F.cross_entropy, "cpu", reduction)


X = torch.tensor([[[[1.0, -3.0], [0.0, 2.0]]], [[[4.0, 0.0], [0.0, 0.0]]]], dtype=torch.float64)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("at_once", [1, 2])
def test_by_hand(at_once, reduction):
    model = network()
    # |x| = 1, 3, 0, 2, 4, 0, 0, 0: mean 10 / 8, mean of squares 30 / 8
    std = np.sqrt(30 / 8 - (10 / 8) ** 2)
    found = metric(model, X, at_once, reduction).run(model[0])
    np.testing.assert_allclose(found, [std, 2 * std])


def test_the_units_of_a_player_count_as_one():
    model = network()
    unit_groups = UnitGroups({model[0]: torch.tensor([0, 0])})
    values = np.abs(np.concatenate([X.numpy().ravel(), -2 * X.numpy().ravel()]))
    found = metric(model, X).estimate([unit_groups])[0].scores
    np.testing.assert_allclose(found, [values.std()])


def test_the_error_is_what_other_data_would_change():
    model, stream = network(), torch.Generator().manual_seed(0)
    draws = [torch.randn(50, 1, 2, 2, generator=stream, dtype=torch.float64) for _ in range(150)]
    found = [metric(model, x, 50).estimate([units_of_module(model[0])])[0] for x in draws]
    apart = np.std([each.scores for each in found], axis=0, ddof=1)
    told = np.mean([each.error for each in found], axis=0)
    np.testing.assert_allclose(told, apart, rtol=0.15)  # of 150 draws
    assert all((each.sampling_error == 0).all() for each in found)
    assert (found[0].degrees == 49).all()


def test_a_unit_that_never_varies_and_a_single_sample():
    model = network()
    found = metric(model, torch.full_like(X, 3.0)).estimate([units_of_module(model[0])])[0]
    assert found.scores.tolist() == found.error.tolist() == [0, 0]
    single = metric(model, X[:1]).estimate([units_of_module(model[0])])[0]
    assert single.error is None
