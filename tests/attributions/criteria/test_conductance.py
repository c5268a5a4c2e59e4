"""The integral on the input's path: by hand, complete, and beside Captum's."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import LayerConductance
from torch import nn

from pruning_lab.attributions.criteria.conductance import ConductanceAttributionMetric
from pruning_lab.attributions.criteria.taylor import TaylorAttributionMetric
from pruning_lab.attributions.evidence.activations import run_together
from pruning_lab.attributions.unit_groups import units_of_module
from pruning_lab.errors import UserError
from tests.oracles.small import mean_square, smooth


def joint(case):
    inputs, total, before = case.x, 0, None
    for step in range(17):
        case.x = step / 16 * inputs
        now = list(case.evidence())
        if before:
            total = total - torch.stack(
                [
                    ((a - b) * (g + h) / 2).sum(1)
                    for (a, g), (b, h) in zip(now, before, strict=True)
                ],
                1,
            )
        before = now
    return total.numpy()


def test_by_hand():
    """y = 3 a - b with a = x, b = relu(x - 1) and target 0, from x = 0 to x = 2.

    Up to 1 y = 3 x; then a rises with slope 1, b too, y = 3 x - (x - 1) = 2 x + 1, L = y^2:
    through a flows the integral of 2 y * 3: 9 up to 1, then 6 (x^2 + x) from 1 to 2, 24;
    through b that of 2 y * -1 from 1 to 2: -2 (x^2 + x), -8. L falls from 0 by -(33 - 8) = -25.
    """
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.fill_(1)
        model[0].bias.copy_(torch.tensor([0.0, -1.0]))
        model[2].weight.copy_(torch.tensor([[3.0, -1.0]]))
    batches = [(torch.tensor([[2.0]]).double(), torch.zeros(1, 1).double())]
    metric = ConductanceAttributionMetric(model, batches, mean_square, "cpu", steps=2)
    # the loss is quadratic on both halves, so that the trapezoid rule with two steps is exact
    np.testing.assert_allclose(metric.run(model[0], True), [-33, 8])


def metric(steps, reduction="none"):
    model, x, y = smooth()
    batches = [(x[:4], y[:4]), (x[4:], y[4:])]
    given = (model, batches, F.cross_entropy, "cpu", reduction)
    return model, x, y, ConductanceAttributionMetric(*given, steps=steps)


@pytest.mark.parametrize("layer", [0, 3])
def test_the_scores_sum_to_what_the_input_is_worth(layer):
    model, x, y, scores = metric(200)
    found = scores.run(model[layer], True)
    blank, whole = (
        F.cross_entropy(model(each), y, reduction="none").detach() for each in (0 * x, x)
    )
    np.testing.assert_allclose(found.sum(1), blank - whole, atol=1e-4)


def test_comes_as_near_to_captums_as_its_steps_are_small():
    """Captum takes the gradient at the start of each step: the error is of first order in it."""
    model, x, y, scores = metric(400)
    found, apart = scores.run(model[0], True), {}

    def losses(inputs):
        return F.cross_entropy(model(inputs), y.repeat(len(inputs) // 6), reduction="none")

    for steps in (50, 400):
        theirs = LayerConductance(losses, model[1]).attribute(
            x, n_steps=steps, method="riemann_trapezoid"
        )
        apart[steps] = np.abs(found + theirs.sum((2, 3)).detach().numpy()).max()
    largest = np.abs(found).max()
    assert apart[400] < 0.01 * largest
    assert apart[50] == pytest.approx(8 * apart[400], rel=0.2)


def test_it_takes_passes_of_its_own():
    model, *_, scores = metric(4)
    other = TaylorAttributionMetric(model, scores.data_generator, F.cross_entropy, "cpu")
    with pytest.raises(UserError, match="ConductanceAttributionMetric takes passes of its own"):
        run_together([other, scores], [units_of_module(model[0])])
    with pytest.raises(UserError, match="steps=0"):
        scores.run(model[0], steps=0)


def test_inputs_without_a_path_from_0_are_refused_beforehand():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(8, 3), nn.Linear(3, 2))
    batches = [(torch.tensor([[1, 2], [3, 4]]), torch.tensor([0, 1]))]
    scores = ConductanceAttributionMetric(model, batches, F.cross_entropy, "cpu")
    with pytest.raises(
        UserError, match=r"inputs from 0 to their values, but these are torch\.int64"
    ):
        scores.check([units_of_module(model[2])])
