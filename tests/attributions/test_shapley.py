"""Sampled Shapley values against enumeration, and the axioms."""

import itertools
from argparse import Namespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pruning_lab.attributions import ShapleyAttributionMetric


def network(units=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, units), nn.Tanh(), nn.Linear(units, 2)).double()


def batch(samples=7):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(samples, 3, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 2, (samples,), generator=generator)


def metric(model, **settings):
    return ShapleyAttributionMetric(model, [batch()], F.cross_entropy, "cpu", "none", **settings)


@torch.no_grad()
def enumerated(model, x, y):
    """Exact values: the weighted mean over all coalitions of what a unit adds to each."""
    activation = torch.tanh(model[0](x))
    units = activation.shape[1]

    def loss(coalition):
        mask = torch.zeros(units, dtype=torch.float64)
        mask[list(coalition)] = 1
        return F.cross_entropy(model[2](activation * mask), y, reduction="none")

    values = torch.zeros(len(x), units, dtype=torch.float64)
    for unit in range(units):
        others = [u for u in range(units) if u != unit]
        for size in range(units):
            coalitions = list(itertools.combinations(others, size))
            for without in coalitions:
                rise = loss(without) - loss((*without, unit))
                values[:, unit] += rise / (len(coalitions) * units)
    return values.numpy()


def test_all_orders_give_the_enumerated_values():
    model = network()
    orders = list(itertools.permutations(range(4)))
    found = metric(model).run(model[0], True, permutations=orders)
    np.testing.assert_allclose(found, enumerated(model, *batch()), atol=1e-12)


def test_the_error_shrinks_with_the_square_root_of_the_orders():
    model, exact = network(), enumerated(network(), *batch())
    errors = {
        orders: np.mean(
            [
                np.linalg.norm(
                    metric(model, sv_samples=orders, seed=seed).run(model[0], True) - exact
                )
                for seed in range(20)
            ]
        )
        for orders in (2, 32)
    }
    assert errors[32] == pytest.approx(errors[2] / 4, rel=0.25)


def test_a_unit_that_nobody_reads_is_worth_exactly_nothing():
    model = network()
    with torch.no_grad():
        model[2].weight[:, 1] = 0
    assert (metric(model, sv_samples=2).run(model[0], True)[:, 1] == 0).all()


def test_units_that_do_the_same_are_worth_the_same():
    model = network()
    with torch.no_grad():
        for parameter in (model[0].weight, model[0].bias):
            parameter[1] = parameter[0]
        model[2].weight[:, 1] = model[2].weight[:, 0]
    orders = list(itertools.permutations(range(4)))
    found = metric(model).run(model[0], True, permutations=orders)
    np.testing.assert_allclose(found[:, 0], found[:, 1], atol=1e-12)


def test_every_sample_has_orders_of_its_own_whatever_the_batch():
    played = Namespace(samples=3, players=10)
    orders = metric(network())._orders(played, 0, pair=0)
    assert torch.equal(orders.sort(1).values, torch.arange(10).expand(3, 10))
    assert not torch.equal(orders[0], orders[1])
    assert not torch.equal(orders, metric(network())._orders(played, 0, pair=1))
    alone = metric(network())._orders(Namespace(samples=1, players=10), 2, pair=0)
    assert torch.equal(alone[0], orders[2])


def test_orders_come_in_antithetic_pairs():
    model = network()
    found = metric(model, sv_samples=3).run(model[0], True)
    np.testing.assert_array_equal(metric(model, sv_samples=4).run(model[0], True), found)
    played = Namespace(samples=7, players=4)
    expected = np.zeros_like(found)
    for pair in range(2):
        for sample, order in enumerate(metric(model)._orders(played, 0, pair).numpy()):
            both = metric(model).run(model[0], True, permutations=[order, order[::-1]])
            expected[sample] += both[sample] / 2
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_samples_limits_what_is_read_to_the_first():
    model = network()
    whole, part = metric(model).run(model[0]), metric(model, samples=3).run(model[0])
    assert whole.shape == (7, 4)
    np.testing.assert_allclose(part, whole[:3], atol=1e-12)


@pytest.mark.parametrize("orders", [[[0, 1, 2, 2]], [[0, 1, 2]], [0, 1, 2, 3]])
def test_permutations_that_are_none_are_refused(orders):
    model = network()
    with pytest.raises(ValueError, match="permutations must be orders of 4 units"):
        metric(model).run(model[0], permutations=orders)


@pytest.mark.parametrize("setting", [{"sv_samples": 0}, {"samples": 0}])
def test_an_impossible_budget_is_refused(setting):
    with pytest.raises(ValueError, match="=0 is not possible; it is a whole number from 1"):
        metric(network(), **setting)
