"""A refused call says why and leaves model and optimizer as they were, bit for bit."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from pruning_lab.pruner import Pruner


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 4),
        nn.ReLU(), nn.Linear(4, 2),
    )  # fmt: skip


def tied():
    model = network()
    model[6] = nn.Linear(4, 4)
    model[6].weight = model[4].weight
    return model


def parametrized():
    model = network()
    parametrizations.weight_norm(model[4])
    return model


def trained(model, optimizer):
    model(torch.randn(8, 3)).sum().backward()
    if not isinstance(optimizer, torch.optim.LBFGS):
        optimizer.step()


def lbfgs(parameters):
    return torch.optim.LBFGS(parameters)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def widening():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))


CASES = {
    "out of range": (network, sgd, lambda p, m: p.prune_model(m[0], [4]), "'0' has no unit 4"),
    "negative": (network, sgd, lambda p, m: p.prune_model(m[0], [-1]), "has no unit -1"),
    "all": (network, sgd, lambda p, m: p.prune_model(m[0], range(4)), "All 4 units of layer '0'"),
    "stranger": (
        network, sgd, lambda p, m: p.prune_model(nn.Linear(3, 4), [0]), "not part of the model",
    ),
    "no units": (network, sgd, lambda p, m: p.prune_model(m[2], [0]), "ReLU .'2'. has no units"),
    "output": (network, sgd, lambda p, m: p.prune_model(m[6], [0]), "caller of the model sees"),
    "optimizer": (network, lbfgs, lambda p, m: p.prune_model(m[0], [0]), "LBFGS cannot be handled"),
    "misfit": (
        widening, sgd, lambda p, m: p.prune_model(m[0], [0], [m[4]]), "6 inputs, no multiple of 4",
    ),
    "tied": (
        tied, sgd, lambda p, m: p.prune_model(m[0], [0], [m[1], m[3], m[4]]),
        "4.weight and 6.weight are one",
    ),
    "tied to the output": (
        tied, sgd, lambda p, m: p.prune_model(m[0], [0]), "the caller of the model sees its output",
    ),
    "parametrized": (
        parametrized, sgd, lambda p, m: p.prune_model(m[0], [0]), "weight of '4' is computed from",
    ),
    "direction": (
        network, sgd, lambda p, m: p.prune_module(m[0], [0], direction="up"), "it is 'in' or 'out'",
    ),
    "follower": (
        network, sgd, lambda p, m: p.prune_model(m[0], [0], [m[2]]), "inputs of '2' .ReLU. cannot",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_nothing_changes(case):
    build, make_optimizer, call, message = CASES[case]
    model = build()
    optimizer = make_optimizer(model.parameters())
    trained(model, optimizer)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    attributes = repr(model)
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=message):
        call(Pruner(model, (3,), "cpu", optimizer), model)
    for key, value in model.state_dict().items():
        assert torch.equal(before[0][key], value)
    assert repr(model) == attributes
    for old, new in zip(gradients, (p.grad for p in model.parameters()), strict=True):
        assert old is new is None or torch.equal(old, new)
    assert str(optimizer.state_dict()) == str(before[1])


def test_finding_followers_changes_neither_statistics_nor_mode_nor_random_state():
    model = network().train()
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    with pytest.raises(ValueError, match="caller of the model"):
        Pruner(model, (3,), "cpu").prune_model(model[6], [0])
    assert model.training
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
