"""All criteria and layers in one pass: the numbers of one after the other, in little memory."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pruning_lab.attributions import (
    APoZAttributionMetric,
    SensitivityAttributionMetric,
    ShapleyAttributionMetric,
    TaylorAttributionMetric,
)
from pruning_lab.attributions.evidence.activations import run_together
from pruning_lab.attributions.observation.checks import ROWS
from pruning_lab.attributions.unit_groups import units_of_module
from pruning_lab.errors import UserError
from tests.oracles import textbook

CRITERIA = {
    "apoz": (APoZAttributionMetric, {}),
    "sensitivity": (SensitivityAttributionMetric, {}),
    "taylor": (TaylorAttributionMetric, {}),
    "taylor_signed": (TaylorAttributionMetric, {"signed": True}),
}


@pytest.fixture
def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True),
        nn.MaxPool2d(2), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5), nn.ReLU(),
        nn.Linear(5, 3),
    )  # fmt: skip
    model(torch.randn(50, 2, 8, 8))  # statistics that are not those of the start
    data = [(torch.randn(n, 2, 8, 8, dtype=torch.float64), torch.randint(3, (n,))) for n in (9, 4)]
    return model.double().eval(), data


def built(model, data, reduction="none", names=tuple(CRITERIA), **more):
    made = []
    for name in names:
        kind, options = CRITERIA[name]
        made.append(kind(model, data, F.cross_entropy, "cpu", reduction, **options))
        vars(made[-1]).update(more)
    return made


def together(metrics, layers, after_activation=False):
    found = run_together(metrics, [units_of_module(layer) for layer in layers], after_activation)
    return [[each.scores for each in layers] for layers in found]


def test_one_pass_gives_the_textbooks_numbers(network):
    model, data = network
    modules = textbook.chain(model)
    places = textbook.sites(modules)
    found = together(built(model, data), list(places), True)
    for name, layers in zip(CRITERIA, found, strict=True):
        for place, scores in zip(places.values(), layers, strict=True):
            expected = textbook.score(model, modules[place], data, name)
            assert scores.shape == expected.shape
            np.testing.assert_allclose(scores, expected, rtol=1e-10, atol=1e-12)


def test_shapley_values_are_the_textbooks(network):
    model, data = network
    modules = textbook.chain(model)
    for layer, place in textbook.sites(modules).items():
        units = textbook.score(model, modules[place], data, "apoz").shape[1]
        orders = [np.random.default_rng(seed).permutation(units) for seed in range(3)]
        metric = ShapleyAttributionMetric(
            model, data, F.cross_entropy, "cpu", "none", permutations=np.stack(orders)
        )
        expected = textbook.shapley(modules, place, data, orders)
        np.testing.assert_allclose(metric.run(layer, True), expected, rtol=1e-9, atol=1e-12)


def test_the_data_are_read_once_in_parts_that_fit(network):
    model, data = network
    layers, seen = list(textbook.sites(textbook.chain(model))), []

    def counted(output, target, reduction):
        seen.append(len(target))
        return F.cross_entropy(output, target, reduction=reduction)

    whole = together(built(model, data, "mean", criterion=counted), layers)
    first = 2 * len(ROWS)  # two samples are held against each other, with two kinds of targets
    assert seen[first:] == [9, 4]
    seen.clear()
    parts = together(built(model, data, "mean", criterion=counted, memory=1), layers)
    assert seen[first:] == [1] * 13
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(np.hstack(one), np.hstack(other), rtol=1e-12)


def test_other_data_cannot_share_a_pass(network):
    model, data = network
    metrics = [*built(model, data, names=["apoz"]), *built(model, list(data), names=["taylor"])]
    with pytest.raises(UserError, match="must have the same data_generator"):
        together(metrics, [model[0]])
