"""What metrics refuse, and the seed's calls."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pruning_lab.attributions import (
    APoZAttributionMetric,
    RandomAttributionMetric,
    ShapleyAttributionMetric,
    TaylorAttributionMetric,
    WeightNormAttributionMetric,
)

X, Y = torch.randn(6, 3), torch.tensor([0, 1, 0, 1, 0, 1])


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def make(metric_class, model, criterion=F.cross_entropy, batches=((X, Y),), **settings):
    return metric_class(model, batches, criterion, "cpu", **settings)


def test_the_seeds_loop_over_all_leaves_gives_a_score_for_every_unit():
    model = network()
    attr = make(RandomAttributionMetric, model)
    sizes = []
    for module in model.children():
        if len(list(module.children())) == 0:  # leaf module
            sizes.append(len(attr.run(module)))
    assert sizes == [4, 4, 2]


def test_options_may_be_given_in_the_call_as_in_the_constructor():
    model = network()
    in_call = make(TaylorAttributionMetric, model).run(model[0], signed=True)
    in_constructor = make(TaylorAttributionMetric, model, signed=True).run(model[0])
    np.testing.assert_array_equal(in_call, in_constructor)
    in_call = make(ShapleyAttributionMetric, model).run(model[0], sv_samples=3)
    in_constructor = make(ShapleyAttributionMetric, model, sv_samples=3).run(model[0])
    np.testing.assert_array_equal(in_call, in_constructor)


def test_an_option_in_one_call_does_not_stay_for_the_next():
    model = network()
    metric = make(TaylorAttributionMetric, model)
    before = metric.run(model[0])
    metric.run(model[0], signed=True)
    np.testing.assert_array_equal(metric.run(model[0]), before)


def test_an_unknown_option_is_refused_with_the_known_ones():
    model = network()
    with pytest.raises(TypeError, match=r"takes no 'sv_sample'; it takes sv_samples, perm"):
        make(ShapleyAttributionMetric, model).run(model[0], sv_sample=3)


def test_an_unknown_reduction_is_refused_with_the_known_ones():
    with pytest.raises(
        ValueError, match=r"reduction='median' is not known.*mean, sum, mean_abs, mean_plus"
    ):
        make(APoZAttributionMetric, network(), reduction="median")


def test_a_leaf_without_weights_has_no_weight_norm():
    model = network()
    with pytest.raises(ValueError, match="ReLU has no weights"):
        make(WeightNormAttributionMetric, model).run(model[1])


class Scalar(nn.Module):
    def forward(self, x):
        return x.sum(1)


@pytest.mark.parametrize(
    "metric_class", [RandomAttributionMetric, APoZAttributionMetric, ShapleyAttributionMetric]
)
def test_a_leaf_whose_output_has_no_unit_dimension_is_refused(metric_class):
    model = nn.Sequential(nn.Linear(3, 4), Scalar())
    metric = make(metric_class, model, lambda output, target, reduction: output)
    with pytest.raises(ValueError, match="Scalar has no units"):
        metric.run(model[1])


def test_a_layer_of_another_model_is_refused():
    with pytest.raises(ValueError, match="is not part of the model"):
        make(APoZAttributionMetric, network()).run(nn.Linear(3, 4))


def test_a_loss_that_is_not_one_number_a_sample_is_refused():
    model = network()
    metric = make(TaylorAttributionMetric, model, lambda o, t, reduction: F.cross_entropy(o, t))
    with pytest.raises(ValueError, match=r"one loss a sample, \(2, ...\); it gave shape \(\)"):
        metric.run(model[0])


def test_data_that_yields_nothing_is_refused():
    model = network()
    with pytest.raises(ValueError, match="yielded no batch"):
        make(APoZAttributionMetric, model, batches=()).run(model[0])


def test_a_reduction_over_the_wrong_axis_is_refused():
    model = network()
    metric = make(TaylorAttributionMetric, model, reduction=lambda scores: scores.max(1))
    with pytest.raises(ValueError, match=r"shape \(6,\) out of the per-sample scores \(6, 4\)"):
        metric.run(model[0])
