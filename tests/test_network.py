"""What the network of an experiment says of its units."""

import numpy as np
import torch
from torch import nn

from pruning_lab.network import Network
from pruning_lab.schedules import OneShot, Step


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
    assert {name: players.tolist() for name, players in plain.items()} == {"0": [], "3": [0]}
    # a filter costs 2 (9 x 16 + 16 x 5) = 448 FLOPs, a hidden unit 2 (128 + 3) = 262
    for penalty, dear in ((0.999 / 186e-6, False), (1.001 / 186e-6, True)):
        plan = own.plan(scores, step, OneShot(flops_penalty=penalty * 0.001, **schedule))
        assert len(plan["0"]) == dear
        assert len(plan["3"]) == 1 - dear
