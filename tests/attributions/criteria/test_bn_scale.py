"""The scales of BatchNorms, by hand, and layers that have none."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pruning_lab.attributions.criteria.bn_scale import BNScaleAttributionMetric
from pruning_lab.attributions.unit_groups import UnitGroups
from pruning_lab.errors import UserError


def network(affine=True):
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, affine=affine), nn.ReLU(), nn.Flatten(),
        nn.Linear(12, 2), nn.BatchNorm1d(2), nn.Linear(2, 2),
    )  # fmt: skip
    with torch.no_grad():
        if affine:
            model[1].weight.copy_(torch.tensor([-2.0, 0.5, 1.0]))
        model[5].weight.copy_(torch.tensor([3.0, -0.25]))
    return model.eval()


def metric(model):
    batches = [(torch.randn(2, 1, 4, 4), torch.tensor([0, 1]))]
    return BNScaleAttributionMetric(model, batches, F.cross_entropy, "cpu")


def test_by_hand():
    model = network()
    scores = metric(model)
    assert scores.run(model[0]).tolist() == [2, 0.5, 1]
    assert scores.run(model[4]).tolist() == [3, 0.25]
    assert scores.run(model[1]).tolist() == [2, 0.5, 1]  # a BatchNorm's own


def test_a_player_has_the_sum_of_its_units():
    model = network()
    unit_groups = UnitGroups({model[0]: torch.tensor([0, 1, 1]), model[4]: torch.tensor([1, -1])})
    assert metric(model).estimate([unit_groups])[0].scores.tolist() == [2, 4.5]


@pytest.mark.parametrize(("layer", "affine"), [(6, True), (0, False)], ids=["without", "no scale"])
def test_without_a_scale_it_is_refused_beforehand(layer, affine):
    model = network(affine)
    scores = metric(model)
    why = f"'{layer}' has no BatchNorm with a scale directly after it.* Choose another criterion"
    for ask in (scores.check, scores.estimate):
        with pytest.raises(UserError, match=why):
            ask([UnitGroups({model[layer]: None})])
