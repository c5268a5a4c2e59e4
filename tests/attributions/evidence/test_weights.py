"""Each sample's gradient of the weights, against a way back for each of them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from pruning_lab.attributions.evidence.weights import WeightGradientMetric
from pruning_lab.attributions.unit_groups import UnitGroups
from pruning_lab.errors import UserError


class Moved(WeightGradientMetric):
    """sum over weights of w g + (w g)^2: the two are not told apart by a sign."""

    def formula(self, weights, gradient):
        moved = weights * gradient
        return (moved + moved**2).sum(2)


class Wrapped(nn.Module):
    """Control flow on the data: it cannot be traced."""

    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def forward(self, x):
        return self.layers(x if x.sum() < 1e9 else -x)


def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
        nn.ConvTranspose2d(4, 6, 3, groups=2), nn.ReLU(inplace=True), nn.Flatten(),
        nn.Linear(216, 5), nn.ReLU(), nn.Linear(5, 3),
    )  # fmt: skip
    return model.double().eval()


X = torch.randn(5, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
Y = torch.tensor([0, 1, 2, 0, 1])
LAYERS = (0, 1, 3, 6, 8)


def by_hand(model, layer):
    """(samples, units): a pass and a way back for each sample."""
    rows = []
    for x, y in zip(X, Y, strict=True):
        model.zero_grad()
        F.cross_entropy(model(x[None]), y[None]).backward()
        moved = layer.weight * layer.weight.grad
        moved = moved + moved**2
        if isinstance(layer, nn.ConvTranspose2d):  # (inputs, units of a group, 3, 3)
            rows.append(torch.cat([moved[:2].sum((0, 2, 3)), moved[2:].sum((0, 2, 3))]))
        else:
            rows.append(moved.flatten(1).sum(1) if moved.ndim > 1 else moved)
    model.zero_grad()
    return torch.stack(rows).detach().numpy()


@pytest.mark.parametrize("memory", [1, 128 * 2**20])
@pytest.mark.parametrize("wrap", [nn.Sequential, Wrapped], ids=["traced", "hooked"])
def test_equals_a_way_back_for_each_sample(wrap, memory):
    model = network()
    metric = Moved(wrap(model), [(X[:3], Y[:3]), (X[3:], Y[3:])], F.cross_entropy, "cpu", "none")
    metric.memory = memory
    found = metric.run_layers([model[layer] for layer in LAYERS])
    for layer, scores in zip(LAYERS, found, strict=True):
        np.testing.assert_allclose(scores, by_hand(model, model[layer]), rtol=1e-9, atol=1e-12)


def test_the_site_is_the_layers_own_whatever_is_asked_for():
    model = network()
    metric = Moved(model, [(X, Y)], F.cross_entropy, "cpu")
    own, after_activation = (metric.run(model[0], find) for find in (False, True))
    np.testing.assert_array_equal(own, after_activation)


def test_tokens_count_all():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6, 2)).double()
    x, y = torch.randn(3, 2, 4, dtype=torch.float64), torch.tensor([0, 1, 1])
    found = Moved(model, [(x, y)], F.cross_entropy, "cpu", "none").run(model[0])
    for sample in range(3):
        model.zero_grad()
        F.cross_entropy(model(x[sample : sample + 1]), y[sample : sample + 1]).backward()
        moved = model[0].weight * model[0].weight.grad
        expected = (moved + moved**2).sum(1).detach()
        np.testing.assert_allclose(found[sample], expected, rtol=1e-9)


def test_a_player_has_the_sum_of_its_units():
    model = network()
    metric = Moved(model, [(X, Y)], F.cross_entropy, "cpu", "none")
    first, second = metric.run_layers([model[0], model[6]])
    rows = {model[0]: torch.tensor([0, 1, 1, -1]), model[6]: torch.tensor([2, 0, -1, 1, 1])}
    found = metric.estimate([UnitGroups(rows)])[0].scores
    expected = [
        first[:, 0] + second[:, 1],
        first[:, 1] + first[:, 2] + second[:, 3] + second[:, 4],
        second[:, 0],
    ]
    np.testing.assert_allclose(found, np.stack(expected, 1), rtol=1e-12)


class Keyword(nn.Module):
    """Gives its layer no positional argument that is a tensor."""

    def __init__(self):
        super().__init__()
        self.layer, self.out = Doubled(4, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.out(self.layer(2, x=x))


class Doubled(nn.Linear):
    def forward(self, factor, x):
        return factor * super().forward(x)


@pytest.mark.parametrize(
    ("model", "layer", "why"),
    [
        (nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), "1", "ReLU has no weights"),
        (
            nn.Sequential(weight_norm(nn.Linear(4, 3)), nn.Linear(3, 2)),
            "0", "The weight of ParametrizedLinear is computed from others",
        ),
        (Keyword(), "layer", "The input of 'layer' cannot be read"),
    ],
    ids=["without", "computed", "keyword"],
)  # fmt: skip
def test_what_has_no_such_gradient_is_refused(model, layer, why):
    batches = [(torch.randn(2, 4), torch.tensor([0, 1]))]
    with pytest.raises(UserError, match=why):
        Moved(model, batches, F.cross_entropy, "cpu").run(model.get_submodule(layer))


class InPlace(nn.Module):
    """What goes into the second layer is changed in place, and the result is not used."""

    def __init__(self):
        super().__init__()
        self.first, self.relu = nn.Linear(4, 5), nn.ReLU(inplace=True)
        self.second, self.out = nn.Linear(5, 3), nn.Linear(3, 2)

    def forward(self, x):
        h = self.first(x)
        self.relu(h)
        return self.out(self.second(h))


def test_an_input_that_was_changed_in_place_is_read_as_it_goes_in():
    torch.manual_seed(0)
    model = InPlace().double()
    x, y = torch.randn(4, 4, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    found = Moved(model, [(x, y)], F.cross_entropy, "cpu", "none").run(model.second)
    for sample in range(4):
        model.zero_grad()
        F.cross_entropy(model(x[sample : sample + 1]), y[sample : sample + 1]).backward()
        moved = model.second.weight * model.second.weight.grad
        expected = (moved + moved**2).sum(1).detach()
        np.testing.assert_allclose(found[sample], expected, rtol=1e-9)


def test_a_layer_that_runs_twice_is_refused_beforehand():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(nn.Linear(4, 4), shared, shared, nn.Linear(4, 2))
    metric = Moved(model, [(torch.randn(2, 4), torch.tensor([0, 1]))], F.cross_entropy, "cpu")
    unit_groups = [UnitGroups({shared: torch.arange(4)})]
    for ask in (metric.check, metric.estimate):
        with pytest.raises(UserError, match="'1' runs 2 times"):
            ask(unit_groups)
