"""Greedy turns, by hand and by the sums themselves."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pruning_lab.attributions.criteria.thinet import ThiNetAttributionMetric, turns
from pruning_lab.attributions.unit_groups import UnitGroups, units_of_module
from pruning_lab.errors import UserError

joint = None  # units that only go together go into no single layer


def test_by_hand():
    """Into y = 3 a - 2 b + c go a = b = c = x: the units bring 3 x, -2 x and x.

    First goes c, for x^2 is less than 9 x^2 and 4 x^2. Then (3 + 1) x or (-2 + 1) x would lack: b
    is next.
    """
    model = nn.Sequential(nn.Linear(1, 3, bias=False), nn.Linear(3, 1))
    with torch.no_grad():
        model[0].weight.fill_(1)
        model[1].weight.copy_(torch.tensor([[3.0, -2.0, 1.0]]))
    batches = [(torch.tensor([[1.0], [-2.0]]), torch.zeros(2, dtype=int))]
    metric = ThiNetAttributionMetric(model, batches, F.cross_entropy, "cpu")
    assert metric.run(model[0]).tolist() == [2, 1, 0]


def greedy(brought):
    """The turns by sums over what (units, ...) bring, all candidates tried one by one."""
    gone, found = [], np.zeros(len(brought))
    for turn in range(len(brought)):
        rest = [unit for unit in range(len(brought)) if unit not in gone]
        lacking = [float((brought[[*gone, unit]].sum(0) ** 2).sum()) for unit in rest]
        gone.append(rest[int(np.argmin(lacking))])
        found[gone[-1]] = turn
    return found


@pytest.mark.parametrize("seed", range(5))
def test_turns_are_those_of_the_sums_themselves(seed):
    brought = torch.randn(7, 20, generator=torch.Generator().manual_seed(seed)).double()
    assert turns(brought @ brought.T).tolist() == greedy(brought).tolist()


@pytest.mark.parametrize("norm", [False, True], ids=["alone", "BatchNorm behind"])
def test_equals_running_the_next_layer_on_one_unit_at_a_time(norm):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 5, 3, padding=1), nn.BatchNorm2d(5) if norm else nn.Identity(), nn.ReLU(),
        nn.Flatten(), nn.Linear(45, 3),
    ).double()  # fmt: skip
    for each in model:
        if isinstance(each, nn.BatchNorm2d):
            each.running_var.uniform_(0.01, 5)
    model.eval()
    x, y = torch.randn(7, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    maps = model[:4](x)
    brought = torch.stack(
        [
            F.conv2d(maps[:, [unit]], model[4].weight[:, [unit]], padding=1).flatten()
            for unit in range(6)
        ]
    ).detach()
    for at_once in (3, 7):
        batches = list(zip(x.split(at_once), y.split(at_once), strict=True))
        metric = ThiNetAttributionMetric(model, batches, F.cross_entropy, "cpu", "none")
        assert metric.run(model[0], True).tolist() == greedy(brought).tolist()


def test_units_that_no_single_layer_sums_are_refused_beforehand():
    model = nn.Sequential(nn.Linear(3, 4), nn.Softmax(1), nn.Linear(4, 2))
    batches = [(torch.randn(2, 3), torch.tensor([0, 1]))]
    metric = ThiNetAttributionMetric(model, batches, F.cross_entropy, "cpu")
    for unit_groups in (
        units_of_module(model[0]),
        UnitGroups({model[0]: torch.tensor([0, 0, 1, 1])}),
    ):
        for ask in (metric.check, metric.estimate):
            with pytest.raises(UserError, match=r"'0' do not .* one layer that sums"):
                ask([unit_groups])
