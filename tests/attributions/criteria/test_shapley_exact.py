"""All coalitions against the plain sum over subsets, and the originals' exact values."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pruning_lab.attributions.criteria import shapley_exact
from pruning_lab.attributions.criteria.shapley_exact import ExactShapleyAttributionMetric
from tests.oracles.reference import CASES, Reference


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_the_values_are_the_exact_ones_of_the_reference(case, monkeypatch):
    monkeypatch.setattr(shapley_exact, "CHUNK", 7)
    name, index, where = case
    reference = Reference(name)
    metric = ExactShapleyAttributionMetric(
        reference.model, reference.loader(5), F.cross_entropy, "cpu", "none"
    )
    found = metric.run(reference.model[index], where == "after_activation")
    np.testing.assert_allclose(found, reference.value(index, where, "shapley_exact"), atol=1e-8)


def test_a_layer_of_more_than_20_units_is_refused_before_anything_is_computed():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 21), nn.Linear(21, 2))
    data = [(torch.randn(2, 3), torch.tensor([0, 1]))]
    metric = ExactShapleyAttributionMetric(model, data, F.cross_entropy, "cpu")
    with pytest.raises(ValueError, match=r"21 units has 2\^21 coalitions.*up to 20 units"):
        metric.run_layers([model[0], model[1]])
