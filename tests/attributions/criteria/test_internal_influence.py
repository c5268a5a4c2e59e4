"""The integral on the way from no unit to all: by hand, complete, and beside Captum's."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import IntegratedGradients

from pruning_lab.attributions.criteria.internal_influence import InternalInfluenceAttributionMetric
from pruning_lab.errors import UserError
from tests.oracles.small import difference, mean_square, smooth


def joint(case):
    total = 0
    for step in range(16):
        keep = torch.full((len(case.x), 3), (step + 0.5) / 16).double().requires_grad_()
        rows = torch.stack([case.masked(keep[n])[n] for n in range(len(case.x))])
        total = total - torch.autograd.grad(rows.sum(), keep)[0] / 16
    return total.numpy()


def test_by_hand():
    """y = 3 a - b with a = b = 1, target 0: at t L = 4 t^2, with slopes 12 t in a and -4 t in b."""
    model, batches = difference()
    metric = InternalInfluenceAttributionMetric(model, batches, mean_square, "cpu", steps=1)
    # of a linear slope the midpoint rule misses nothing: -12 / 2 and 4 / 2, -4 in all
    np.testing.assert_allclose(metric.run(model[0]), [-6, 2], rtol=1e-6)


@pytest.mark.parametrize("layer", [0, 3])
def test_the_scores_sum_to_what_all_units_are_worth(layer):
    model, x, y = smooth()
    metric = InternalInfluenceAttributionMetric(
        model, [(x, y)], F.cross_entropy, "cpu", "none", steps=200
    )
    found = metric.run(model[layer], True)
    activation = model[: layer + 2](x)
    with_all, without = (
        F.cross_entropy(model[layer + 2 :](each), y, reduction="none")
        for each in (activation, torch.zeros_like(activation))
    )
    np.testing.assert_allclose(found.sum(1), (without - with_all).detach(), atol=1e-5)


def test_is_captums_integrated_gradients_at_the_layer():
    model, x, y = smooth()

    def losses(activation):
        return F.cross_entropy(
            model[2:](activation), y.repeat(len(activation) // 6), reduction="none"
        )

    activation = model[:2](x).detach()
    theirs = IntegratedGradients(losses).attribute(
        activation, n_steps=50, method="riemann_middle", internal_batch_size=None
    )
    metric = InternalInfluenceAttributionMetric(
        model, [(x, y)], F.cross_entropy, "cpu", "none", steps=50
    )
    np.testing.assert_allclose(
        metric.run(model[0], True), -theirs.sum((2, 3)), rtol=1e-7, atol=1e-9
    )


def test_steps_are_refused():
    model, x, y = smooth()
    with pytest.raises(UserError, match="steps=0"):
        InternalInfluenceAttributionMetric(model, [(x, y)], F.cross_entropy, "cpu", steps=0)
