"""What the network of an experiment says of its units."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from pruning_lab.attributions import RandomAttributionMetric
from pruning_lab.experiment.network import Network
from pruning_lab.models.resnet_cifar import ResNet
from pruning_lab.pruning.schedules import OneShot, Step


def network():
    """8 filters of 3 x 3 on 6 x 6 pictures, then 5 hidden units, then 3 classes."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5), nn.ReLU(), nn.Linear(5, 3)
    )
    return Network(model, (1, 6, 6), torch.device("cpu"))


def test_with_a_flops_penalty_the_dear_units_go_first():
    own = network()
    scores = {"0": np.full(8, 0.001), "3": np.zeros(5)}
    step = Step(("0", "3"), 1 / 14)
    schedule = {"target": 0.5, "of": "units", "scope": "global"}
    plain = own.plan(scores, step, OneShot(**schedule))
    assert {name: unit_groups.tolist() for name, unit_groups in plain.items()} == {
        "0": [],
        "3": [0],
    }
    # a filter costs 2 (9 x 16 + 16 x 5) = 448 FLOPs, a hidden unit 2 (128 + 3) = 262
    for penalty, dear in ((0.999 / 186e-6, False), (1.001 / 186e-6, True)):
        plan = own.plan(scores, step, OneShot(flops_penalty=penalty * 0.001, **schedule))
        assert len(plan["0"]) == dear
        assert len(plan["3"]) == 1 - dear


def test_a_group_of_one_unit_has_no_penalty_and_stays():
    own = network()
    own.pruner.prune_groups({"0": np.arange(7)})
    schedule = OneShot(target=0.9, of="units", scope="global", flops_penalty=1e-3)
    plan = own.plan({"0": np.zeros(1), "3": np.ones(5)}, Step(("0", "3"), 8 / 13), schedule)
    assert {name: unit_groups.tolist() for name, unit_groups in plan.items()} == {"0": [], "3": [0]}


def test_global_random_removal_takes_the_same_expected_share_of_every_group():
    """Also of a residual sum, whose players have units in many layers: the mean of as many draws
    would sit in the middle of the ranking, and go at another time than a single one."""
    torch.manual_seed(0)
    own = Network(ResNet(14, num_classes=3, in_channels=1), (1, 8, 8), torch.device("cpu"))
    groups, unit_groups = own.groups(), own.unit_groups(tuple(own.layers), "together")
    assert {len(group.unit_groups) for group in groups.values()} >= {1, 3}
    step = Step(tuple(own.layers), 0.5)
    schedule = OneShot(target=0.5, of="units", scope="global")
    shares = {name: [] for name in groups}
    x = torch.randn(2, 1, 8, 8)
    for seed in range(40):
        metric = RandomAttributionMetric(
            own.model, [(x, torch.tensor([0, 1]))], F.cross_entropy, "cpu", seed=seed
        )
        found = metric.estimate(list(unit_groups.values()), True)
        scores = {name: each.scores for name, each in zip(unit_groups, found, strict=True)}
        for name, gone in own.plan(scores, step, schedule).items():
            shares[name].append(len(gone) / len(groups[name]))
    overall = np.mean([np.mean(each) for each in shares.values()])
    for name, each in shares.items():
        error = 0.5 / np.sqrt(40 * len(groups[name]))  # of a share near one half
        assert abs(np.mean(each) - overall) < 4 * error, name
