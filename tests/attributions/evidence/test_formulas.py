"""Formulas of one's own: what they may do to what they are given, and what they must give."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pruning_lab.attributions import TaylorAttributionMetric
from pruning_lab.attributions.evidence.activations import ActivationMetric, MapMetric, run_together
from pruning_lab.attributions.evidence.weights import WeightGradientMetric, WeightMetric
from pruning_lab.attributions.unit_groups import units_of_module
from pruning_lab.errors import UserError


def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(20, 3))
    return model.double().eval()


X, Y = torch.randn(3, 1, 4, 4, dtype=torch.float64), torch.arange(3)


def own(base, formula, model, **attributes):
    kind = type("Own", (base,), {"formula": formula, **attributes})
    return kind(model, DATA, F.cross_entropy, "cpu")


DATA = [(X, Y)]


def in_place(a, dims):
    a.detach().numpy()[:] = 7  # past torch's count of versions
    return a.sub_(1).sum(dims)


@pytest.mark.parametrize(
    ("base", "formula", "expected"),
    [
        (ActivationMetric, lambda self, a, g: g.zero_().sum(2) + in_place(a, 2), 6 * 4),
        (MapMetric, lambda self, a, g: g.zero_().sum((2, 3)) + in_place(a, (2, 3)), 6 * 4),
        (WeightMetric, lambda self, w: in_place(w, 1), 6 * 9),
        (WeightGradientMetric, lambda self, w, g: in_place(w, 1) + 0 * g.zero_().sum(2), 6 * 9),
    ],
)
def test_a_formula_works_on_copies(base, formula, expected):
    model = network()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    metric, taylor = own(base, formula, model), TaylorAttributionMetric(
        model, DATA, F.cross_entropy, "cpu"
    )  # fmt: skip
    alone = taylor.run(model[0])
    np.testing.assert_array_equal(metric.run(model[0]), np.full(5, expected))
    if base is not WeightMetric:
        both = run_together([metric, taylor], [units_of_module(model[0])])
        np.testing.assert_array_equal(both[1][0].scores, alone)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.equal(DATA[0][0], X)


def test_a_reading_of_the_data_may_be_changed_in_place_by_the_loss():
    model, target = network(), torch.rand(3, 3, dtype=torch.float64)
    before = target.clone()

    def shifted(output, target, reduction):
        return F.mse_loss(output, target.add_(1), reduction=reduction)

    TaylorAttributionMetric(model, [(X, target)], shifted, "cpu").run(model[0])
    assert torch.equal(target, before)


SHAPES = {
    "positions are left": (ActivationMetric, lambda self, a, g: a, "(2, 5), .* (2, 5, 4)"),
    "keepdim": (ActivationMetric, lambda self, a, g: a.mean(2, True), "(2, 5), .* (2, 5, 1)"),
    "summed": (ActivationMetric, lambda self, a, g: a.sum((0, 2)), "(2, 5), .* (5,)"),
    "numpy": (ActivationMetric, lambda self, a, g: a.mean(2).numpy(), "(2, 5), .* a ndarray"),
    "complex": (ActivationMetric, lambda self, a, g: 1j * a.mean(2), "(2, 5), .* complex128"),
    "maps": (MapMetric, lambda self, a, g: a, "(2, 5), .* (2, 5, 2, 2)"),
    "weights are left": (WeightMetric, lambda self, w: w, "(5,), .* (5, 9)"),
    "one number": (WeightMetric, lambda self, w: w.sum(), "(5,), .* ()"),
    "a list": (WeightMetric, lambda self, w: w.sum(1).tolist(), "(5,), .* a list"),
    "gradients": (WeightGradientMetric, lambda self, w, g: w * g, "(2, 5), .* (2, 5, 9)"),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_formula_of_another_shape_is_refused_before_any_work(name):
    base, formula, shapes = SHAPES[name]
    model = network()
    metric = own(base, formula, model)
    words = "here " + shapes.replace("(", r"\(").replace(")", r"\)").replace(
        ", .* ", ".*returned.*"
    )
    with pytest.raises(UserError, match=words):
        metric.check([units_of_module(model[0])])
    with pytest.raises(UserError, match="must return a tensor of real numbers"):
        metric.run(model[0])


@pytest.mark.parametrize(
    ("base", "formula"),
    [
        (ActivationMetric, lambda self, a, g: a.sum(2) / 0),
        (WeightMetric, lambda self, w: w.sum(1) / 0),
        (WeightGradientMetric, lambda self, w, g: g.sum(2) / 0),
    ],
)
def test_scores_that_are_not_finite_are_refused_before_any_work(base, formula):
    model = network()
    with pytest.raises(UserError, match="scores are not finite"):
        own(base, formula, model).check([units_of_module(model[0])])


def test_whole_numbers_are_scores():
    model = network()
    found = own(WeightMetric, lambda self, w: (w > -9).sum(1), model).run(model[0])
    np.testing.assert_array_equal(found, [9.0] * 5)


@pytest.mark.parametrize("formula", [lambda self, a, g: a.mean(2)])
def test_a_rehearsal_draws_nothing_and_changes_nothing(formula):
    model = network()
    state, metric = torch.get_rng_state(), own(ActivationMetric, formula, model)
    metric.check([units_of_module(model[0])])
    assert torch.equal(torch.get_rng_state(), state)
    expected = F.conv2d(X, model[0].weight, model[0].bias).mean((0, 2, 3)).detach().numpy()
    np.testing.assert_allclose(metric.run(model[0]), expected)
