"""Every criterion equals the original TorchPruner's figures, per sample, at both sites."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pruning_lab.attributions import (
    APoZAttributionMetric,
    SensitivityAttributionMetric,
    ShapleyAttributionMetric,
    TaylorAttributionMetric,
    WeightNormAttributionMetric,
)
from tests.oracles.reference import CASES, Reference

EXACT = 1e-8


def scores(metric_class, case, batch_size=None, **options):
    name, index, where = case
    reference = Reference(name)
    metric = metric_class(
        reference.model, reference.loader(batch_size), F.cross_entropy, "cpu", "none", **options
    )
    found = metric.run(reference.model[index], where == "after_activation")
    return reference, found


@pytest.fixture(params=CASES, ids=lambda case: "-".join(map(str, case)))
def case(request):
    return request.param


def test_there_are_reference_values_for_both_networks_and_both_sites():
    assert {name for name, _, _ in CASES} == {"mlp", "cnn"}
    assert {where for _, _, where in CASES} == {"at_module", "after_activation"}
    assert len(CASES) >= 8


def test_apoz_is_the_share_of_what_the_original_counts(case):
    reference, found = scores(APoZAttributionMetric, case)
    expected = reference.value(*case[1:], "apoz") / reference.positions(case[1])
    np.testing.assert_allclose(found, expected, atol=EXACT)


@pytest.mark.parametrize(
    ("metric_class", "options", "key"),
    [
        (SensitivityAttributionMetric, {}, "sensitivity"),
        (TaylorAttributionMetric, {}, "taylor"),
        (TaylorAttributionMetric, {"signed": True}, "taylor_signed"),
    ],
)
@pytest.mark.parametrize("batch_size", [None, 1, 5])
def test_gradient_criteria_use_each_samples_own_loss(case, metric_class, options, key, batch_size):
    reference, found = scores(metric_class, case, batch_size, **options)
    expected = reference.value(*case[1:], key) * reference.batch
    np.testing.assert_allclose(found, expected, atol=EXACT)


def test_weight_norm_has_one_value_a_unit_and_ignores_the_bias(case):
    reference, found = scores(WeightNormAttributionMetric, case)
    np.testing.assert_allclose(found, reference.value(*case[1:], "weight_norm"), atol=EXACT)


@pytest.mark.parametrize("batch_size", [None, 1, 5])
def test_shapley_with_the_originals_permutations_gives_its_values(case, batch_size):
    name, index, where = case
    reference = Reference(name)
    metric = ShapleyAttributionMetric(
        reference.model, reference.loader(batch_size), F.cross_entropy, "cpu", "none"
    )
    found = metric.run(
        reference.model[index],
        where == "after_activation",
        permutations=reference.value(index, where, "permutations"),
    )
    np.testing.assert_allclose(found, reference.value(index, where, "shapley_5"), atol=EXACT)


def test_shapley_with_many_permutations_approaches_the_exact_values(case):
    few = relative_error(case, sv_samples=4)
    many = relative_error(case, sv_samples=256)
    assert many < 0.05
    # sixty-four times the orders: an eighth of the error; one pair is exact for two live units
    assert many < max(few / 4, 1e-12)


def relative_error(case, sv_samples):
    reference, found = scores(ShapleyAttributionMetric, case, sv_samples=sv_samples)
    exact = reference.value(*case[1:], "shapley_exact")
    return np.linalg.norm(found - exact) / np.linalg.norm(exact)


def test_sampled_shapley_sums_to_the_loss_of_losing_every_unit(case):
    reference, found = scores(ShapleyAttributionMetric, case, sv_samples=1)
    exact = reference.value(*case[1:], "shapley_exact")
    np.testing.assert_allclose(found.sum(1), exact.sum(1), atol=EXACT)


def test_the_reference_models_are_left_in_float64_and_eval_mode():
    assert all(p.dtype == torch.float64 for p in Reference("cnn").model.parameters())
