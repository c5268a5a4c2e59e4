"""Pruning by structure leaves, bit for bit, what the original's algorithm leaves."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pruning_lab.pruner import Pruner
from tests.oracles import textbook_pruning
from tests.oracles.masked_twin import randomise

CUTS = {0: [1, 4], 5: [0, 2, 3], 10: [5], 14: [0, 1, 6]}
SIZE = (2, 8, 8)
ATTRIBUTES = ("in_channels", "out_channels", "in_features", "out_features", "num_features")


def chain():
    """Like VGG, with several inputs of a Linear for every channel."""
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1),
        nn.BatchNorm2d(5),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Dropout2d(0.2),
        nn.Conv2d(5, 7, 3, padding=1, bias=False),
        nn.BatchNorm2d(7),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(28, 6),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.BatchNorm1d(6),
        nn.Linear(6, 8),
        nn.Tanh(),
        nn.Linear(8, 3),
    )


def learn(model, optimizer):
    """One step, whose gradients stay."""
    torch.manual_seed(1)
    optimizer.zero_grad()
    F.cross_entropy(model(torch.randn(8, *SIZE)), torch.randint(3, (8,))).backward()
    optimizer.step()


def trained():
    torch.manual_seed(0)
    model = randomise(chain())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    learn(model, optimizer)
    return model, optimizer


def groups_at_once(model, optimizer):
    Pruner(model, SIZE, "cpu", optimizer).prune_groups({str(k): cut for k, cut in CUTS.items()})


def layer_by_layer(model, optimizer):
    pruner = Pruner(model, SIZE, "cpu", optimizer)
    for index, units in CUTS.items():
        pruner.prune_model(model[index], units)


def everything(model, optimizer):
    """All tensors that a cut touches, by name."""
    found = dict(model.state_dict())
    for name, parameter in model.named_parameters():
        found[f"{name}, gradient"] = parameter.grad
        found[f"{name}, momentum"] = optimizer.state[parameter]["momentum_buffer"]
    return found


def attributes(model):
    widths = [getattr(each, name, None) for each in model for name in ATTRIBUTES]
    rates = [each.p for each in model if isinstance(each, nn.Dropout | nn.Dropout2d)]
    return widths, rates


@pytest.mark.parametrize("prune", [groups_at_once, layer_by_layer])
def test_everything_that_is_left_is_bit_identical(prune):
    model, optimizer = trained()
    expected, expected_optimizer = trained()
    prune(model, optimizer)
    pairs = [(expected[index], units) for index, units in CUTS.items()]
    textbook_pruning.prune(expected, expected_optimizer, pairs, torch.rand(2, *SIZE))
    mine, theirs = everything(model, optimizer), everything(expected, expected_optimizer)
    assert mine.keys() == theirs.keys()
    assert [key for key in mine if not torch.equal(mine[key], theirs[key])] == []
    assert model[10].weight.shape == (5, 16)
    assert attributes(model)[0] == attributes(expected)[0]
    assert attributes(model)[1] == pytest.approx(attributes(expected)[1])


def test_both_go_on_training_alike():
    model, optimizer = trained()
    expected, expected_optimizer = trained()
    groups_at_once(model, optimizer)
    pairs = [(expected[index], units) for index, units in CUTS.items()]
    textbook_pruning.prune(expected, expected_optimizer, pairs, torch.rand(2, *SIZE))
    assert expected.training
    for each in (model, expected):  # their rates may differ in the last bit
        each[4].p, each[12].p = 0.1, 0.4
    learn(model, optimizer)
    learn(expected, expected_optimizer)
    x = torch.randn(4, *SIZE)
    assert torch.equal(model.eval()(x), expected.eval()(x))


def test_the_probe_leaves_the_statistics_alone_and_the_hooks_are_gone():
    model, _ = trained()
    before = copy.deepcopy(model.state_dict())
    textbook_pruning.nan_inputs(
        model.eval(),
        model[0],
        [0],
        textbook_pruning.followers(list(model), model[0]),
        torch.rand(2, *SIZE),
    )
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.isfinite(model(torch.rand(2, *SIZE))).all()
