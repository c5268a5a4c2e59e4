"""(sum of w g)^2: by hand, beside gradients of the weights, and where a peer forgets BatchNorm."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import nn

from pruning_lab.attributions.criteria.fisher import FisherAttributionMetric
from pruning_lab.attributions.criteria.taylor_weight import TaylorWeightAttributionMetric
from pruning_lab.attributions.evidence.weights import WeightGradientMetric
from pruning_lab.attributions.unit_groups import UnitGroups, units_of_module
from pruning_lab.errors import UserError
from tests.oracles.small import mean_square
from tests.oracles.torch_pruning import importance


def joint(case):
    return case.summed({k: each.sum(2) for k, each in case.moved().items()}) ** 2


class Literal(WeightGradientMetric):
    """The slow twin: by each sample's gradients of the weights."""

    def formula(self, weights, gradient):
        return (weights * gradient).sum(2) ** 2


def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2, padding=1, padding_mode="reflect"), nn.BatchNorm2d(4),
        nn.ReLU(inplace=True), nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False),
        nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(384, 5), nn.GELU(), nn.Linear(5, 3),
    ).double()  # fmt: skip
    with torch.no_grad():
        for norm in (model[1], model[4]):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            norm.weight.normal_()
            norm.bias.normal_()
    return model.eval()


X = torch.randn(5, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
Y = torch.tensor([0, 1, 2, 0, 1])


def metric(model, kind=TaylorWeightAttributionMetric, **settings):
    return kind(model, [(X[:3], Y[:3]), (X[3:], Y[3:])], F.cross_entropy, "cpu", "none", **settings)


def test_by_hand():
    """y = 2 h0 + h1 with h = (x1 + 3 x2 + 5, -x1 + 5): dL/dy = 2 y for target 0."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 3.0], [-1.0, 0.0]]))
        model[0].bias.fill_(5)
        model[1].weight.copy_(torch.tensor([[2.0, 1.0]]))
    # x = (1, 1): h = (9, 4), y = 22, dL/dh = 44 (2, 1)
    # weights: 88 (1 * 1 + 3 * 1) = 352 and 44 * -1, squared
    batches = [(torch.tensor([[1.0, 1.0]]), torch.zeros(1, 1))]
    found = TaylorWeightAttributionMetric(model, batches, mean_square, "cpu").run(model[0])
    np.testing.assert_allclose(found, [352**2, 44**2])


@pytest.mark.parametrize("after_activation", [False, True])
@pytest.mark.parametrize("layer", [0, 1, 3, 4, 7, 9])
def test_equals_the_gradients_of_the_weights(layer, after_activation):
    model = network()
    found, expected = (
        metric(model, kind).run(model[layer], after_activation)
        for kind in (TaylorWeightAttributionMetric, Literal)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_tokens_have_their_units_last():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6, 2)).double()
    batches = [(torch.randn(3, 2, 4, dtype=torch.float64), torch.tensor([0, 1, 1]))]
    found, expected = (
        kind(model, batches, F.cross_entropy, "cpu", "none").run(model[0])
        for kind in (TaylorWeightAttributionMetric, Literal)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize(("layer", "norm"), [(0, 1), (3, 4), (1, 1)])
def test_the_gate_is_scale_and_bias_of_the_batchnorm(layer, norm):
    model = network()
    found = metric(model, gate=True).run(model[layer])
    for sample in range(5):
        model.zero_grad()
        F.cross_entropy(model(X[sample : sample + 1]), Y[sample : sample + 1]).backward()
        scale, bias = model[norm].weight, model[norm].bias
        expected = (scale * scale.grad + bias * bias.grad).detach() ** 2
        np.testing.assert_allclose(found[sample], expected, rtol=1e-9)


def test_behind_a_relu_the_gate_is_twice_the_fisher_criterion():
    model = network()
    fisher = metric(model, FisherAttributionMetric).run(model[0], True)
    np.testing.assert_allclose(metric(model, gate=True).run(model[0]), 2 * fisher, rtol=1e-9)


def test_the_weights_of_a_player_are_summed_before_they_are_squared():
    model = network()
    unit_groups = UnitGroups(
        {model[0]: torch.tensor([0, 1, 1, -1]), model[7]: torch.tensor([1, 0, 1, 0, 1])}
    )
    found = metric(model).estimate([unit_groups])[0].scores
    for sample in range(5):
        model.zero_grad()
        F.cross_entropy(model(X[sample : sample + 1]), Y[sample : sample + 1]).backward()
        first, second = (
            (each.weight * each.weight.grad).flatten(1).sum(1).detach()
            for each in (model[0], model[7])
        )
        expected = [
            (first[0] + second[1] + second[3]) ** 2,
            (first[1] + first[2] + second[0] + second[2] + second[4]) ** 2,
        ]
        np.testing.assert_allclose(found[sample], expected, rtol=1e-9)


class Twice(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("layer", "gate", "why"),
    [
        (nn.ReLU(), False, "ReLU has no weights"),
        (Twice(4, 4), False, "Twice has code of its own"),
        (nn.Linear(4, 4), True, "has no BatchNorm directly after it, which metric.gate=true"),
    ],
    ids=["without weights", "own code", "no BatchNorm"],
)
def test_what_it_cannot_score_is_refused_beforehand(layer, gate, why):
    model = nn.Sequential(nn.Linear(4, 4), layer, nn.Linear(4, 2))
    batches = [(torch.randn(2, 4), torch.tensor([0, 1]))]
    scores = TaylorWeightAttributionMetric(model, batches, F.cross_entropy, "cpu", gate=gate)
    for ask in (scores.check, scores.estimate):
        with pytest.raises(UserError, match=why):
            ask([units_of_module(layer)])


def test_torch_pruning_leaves_batchnorm_out():
    """Its Taylor importance asks for a GroupNorm where the BatchNorm should be: with BatchNorms
    among its kinds of layers it says the same as without. (It sums abs(w g), of a whole batch.)"""
    model = network()
    F.cross_entropy(model(X), Y).backward()
    both, convolutions = (
        importance(
            model, model[0], X,
            tp.importance.GroupTaylorImportance("sum", None, target_types=kinds),
        )
        for kinds in ([nn.Conv2d, nn.BatchNorm2d], [nn.Conv2d])
    )  # fmt: skip
    np.testing.assert_array_equal(both, convolutions)
    left_out = (model[1].weight * model[1].weight.grad).abs().detach()
    assert left_out.max() > 0.1 * convolutions.max()
