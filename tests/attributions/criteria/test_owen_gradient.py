"""The mask gradient against a loop of autograd, and against what it stands for."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pruning_lab.attributions.criteria.owen_gradient import OwenGradientAttributionMetric
from pruning_lab.attributions.criteria.shapley_exact import ExactShapleyAttributionMetric
from tests.oracles.reference import Reference


def metric(reference, reduction="none", **options):
    return OwenGradientAttributionMetric(
        reference.model, reference.loader(7), F.cross_entropy, "cpu", reduction, **options
    )


def test_scores_are_mean_gradients_at_the_masks():
    reference = Reference("cnn")
    found = metric(reference, masks=4, seed=5).run(reference.model[0], True)
    x, y = reference.dataset.tensors
    activation = reference.model[:3](x).detach()
    expected = np.zeros_like(found)
    for sample in range(len(x)):
        for pair in range(2):
            stream = np.random.default_rng([5, sample, pair])
            kept = torch.tensor(stream.random(6) < stream.random()).double()
            for mask in (kept, 1 - kept):
                mask.requires_grad_()
                masked = activation[sample : sample + 1] * mask[None, :, None, None]
                loss = F.cross_entropy(reference.model[3:](masked), y[sample : sample + 1])
                expected[sample] -= torch.autograd.grad(loss, mask)[0].numpy() / 4
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_where_the_loss_is_linear_in_the_units_it_is_the_shapley_value():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    data = [(torch.randn(6, 3, dtype=torch.float64), torch.zeros(6))]

    def linear(output, target, reduction):
        return output

    found, exact = (
        kind(model, data, linear, "cpu", "none").run(model[0], True)
        for kind in (OwenGradientAttributionMetric, ExactShapleyAttributionMetric)
    )
    np.testing.assert_allclose(found, exact, atol=1e-12)


def test_it_ranks_units_nearly_as_the_exact_values_do():
    reference = Reference("mlp")
    found = metric(reference, "mean", masks=64).run(reference.model[0], True)
    exact = reference.value(0, "after_activation", "shapley_exact").mean(0)
    ranks = [np.argsort(np.argsort(each)) for each in (found, exact)]
    assert np.corrcoef(*ranks)[0, 1] > 0.8


@pytest.mark.parametrize("masks", [0, 2, 5])
def test_masks_come_in_at_least_two_pairs(masks):
    with pytest.raises(ValueError, match=f"masks={masks} is not possible"):
        metric(Reference("mlp"), masks=masks)
