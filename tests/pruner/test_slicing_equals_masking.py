"""A sliced network computes what the masked original computes, and learns what it learns."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pruning_lab.graph.kinds import units_of
from pruning_lab.pruner import Pruner
from tests.oracles.masked_twin import masked_twin, randomise, width
from tests.pruner.networks import cuts, networks


@settings(deadline=None, max_examples=60)
@given(network=networks(), data=st.data())
def test_outputs_are_equal_in_any_sequential_network_over_two_rounds(network, data):
    model, size, prunable = network
    original = randomise(model.double()).eval()
    sliced, removed = copy.deepcopy(original), {layer: set() for layer in prunable}
    pruner = Pruner(sliced, size, "cpu")
    for _ in range(2):
        widths = {i: width(sliced[i]) for i in prunable if width(sliced[i]) > 1}
        if not widths:
            break
        for layer, units in data.draw(cuts(widths)).items():
            left = [u for u in range(width(original[layer])) if u not in removed[layer]]
            removed[layer] |= {left[unit] for unit in units}
            pruner.prune_model(sliced[layer], units)
    x = torch.randn(6, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    twin = masked_twin(original, {layer: sorted(units) for layer, units in removed.items()})
    with torch.no_grad():
        torch.testing.assert_close(sliced(x), twin(x), rtol=1e-9, atol=1e-9)
    for layer, units in removed.items():
        kept = [u for u in range(width(original[layer])) if u not in units]
        assert pruner.kept.get(str(layer), kept) == kept
        assert width(sliced[layer]) == units_of(sliced[layer]) == len(kept)


def network():
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1),
        nn.BatchNorm2d(5),
        nn.Sigmoid(),
        nn.Conv2d(5, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.0),
        nn.Flatten(),
        nn.Linear(4 * 9, 6),
        nn.LeakyReLU(),
        nn.Linear(6, 3),
    )


CUTS = {0: [1, 4], 3: [0], 8: [2, 3, 5]}


@torch.no_grad()
def test_the_removal_has_an_effect_that_dwarfs_the_error():
    original = randomise(network().double()).eval()
    sliced, twin = copy.deepcopy(original), masked_twin(original, CUTS)
    pruner = Pruner(sliced, (2, 5, 5), "cpu")
    for layer, units in CUTS.items():
        pruner.prune_model(sliced[layer], units)
    x = torch.randn(16, 2, 5, 5, dtype=torch.float64)
    error = (sliced(x) - twin(x)).abs().max()
    effect = (original(x) - twin(x)).abs().max()
    assert effect > 0.1
    assert error < 1e-9


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
}


def learn(model, optimizer, seed):
    stream = torch.Generator().manual_seed(seed)
    x = torch.randn(8, 2, 5, 5, dtype=torch.float64, generator=stream)
    y = torch.randint(0, 3, (8,), generator=stream)
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_next_training_step_equals_the_twins_on_the_kept_weights(name):
    """The twin's removed columns stay at 0 for the step's forward pass, whatever they become."""
    original = randomise(network().double()).train()
    optimizer = OPTIMIZERS[name](original.parameters())
    learn(original, optimizer, seed=1)  # momentum and moments are no longer empty
    sliced, sliced_optimizer = copy.deepcopy((original, optimizer))
    twin, twin_optimizer = copy.deepcopy((original, optimizer))
    with torch.no_grad():
        for mine, masked in zip(
            twin.parameters(), masked_twin(original, CUTS).parameters(), strict=True
        ):
            mine.copy_(masked)
    pruner = Pruner(sliced, (2, 5, 5), "cpu", sliced_optimizer)
    for layer, units in CUTS.items():
        pruner.prune_model(sliced[layer], units)
    learn(sliced, sliced_optimizer, seed=2)
    learn(twin, twin_optimizer, seed=2)
    compare_kept(sliced, twin)


def compare_kept(sliced, twin):
    """Every kept weight, bias, statistic of ``sliced`` equals the same one of ``twin``."""
    keep = {i: [u for u in range(width(twin[i])) if u not in CUTS[i]] for i in CUTS}
    flat = [channel * 9 + p for channel in keep[3] for p in range(9)]
    expected = {
        "0.weight": twin[0].weight[keep[0]],
        "0.bias": twin[0].bias[keep[0]],
        "1.weight": twin[1].weight[keep[0]],
        "1.running_mean": twin[1].running_mean[keep[0]],
        "1.running_var": twin[1].running_var[keep[0]],
        "3.weight": twin[3].weight[keep[3]][:, keep[0]],
        "3.bias": twin[3].bias[keep[3]],
        "4.bias": twin[4].bias[keep[3]],
        "8.weight": twin[8].weight[keep[8]][:, flat],
        "10.weight": twin[10].weight[:, keep[8]],
        "10.bias": twin[10].bias,
    }
    state = sliced.state_dict()
    for key, value in expected.items():
        torch.testing.assert_close(state[key], value.detach(), rtol=1e-9, atol=1e-9, msg=key)


def test_a_momentum_step_by_hand():
    """w' = w - lr (m v + g) on the kept weights, with the sliced old velocity v."""
    model = nn.Sequential(nn.Linear(1, 3, bias=False), nn.Linear(3, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [2.0], [3.0]]))
        model[1].weight.copy_(torch.tensor([[1.0, 1.0, 1.0]]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    x = torch.ones(1, 1, dtype=torch.float64)
    model(x).sum().backward()  # g = (1, 1, 1) and (1, 2, 3), which become the velocities
    optimizer.step()  # weights (0.9, 1.9, 2.9) and (0.9, 0.8, 0.7)
    Pruner(model, (1,), "cpu", optimizer).prune_model(model[0], [1])
    assert optimizer.state[model[0].weight]["momentum_buffer"].tolist() == [[1], [1]]
    assert optimizer.state[model[1].weight]["momentum_buffer"].tolist() == [[1, 3]]
    optimizer.zero_grad()
    model(x).sum().backward()  # g = (0.9, 0.7) and (0.9, 2.9)
    optimizer.step()
    # 0.9 - 0.1 (0.5 * 1 + 0.9), 2.9 - 0.1 (0.5 * 1 + 0.7)
    assert model[0].weight.flatten().tolist() == pytest.approx([0.76, 2.78])
    # 0.9 - 0.1 (0.5 * 1 + 0.9), 0.7 - 0.1 (0.5 * 3 + 2.9)
    assert model[1].weight.flatten().tolist() == pytest.approx([0.76, 0.26])


def test_a_loss_from_before_the_cut_may_still_be_alive():
    model = network().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    alive = model(torch.randn(8, 2, 5, 5)).sum()
    Pruner(model, (2, 5, 5), "cpu", optimizer).prune_model(model[0], [1, 4])
    model(torch.randn(8, 2, 5, 5)).sum().backward()
    optimizer.step()
    assert model[0].weight.grad.shape == (3, 2, 3, 3)
    assert alive.grad_fn is not None


def test_gradients_are_sliced_with_their_weights():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    model(torch.randn(4, 2)).sum().backward()
    gradients = model[0].weight.grad.clone(), model[1].weight.grad.clone()
    Pruner(model, (2,), "cpu").prune_model(model[0], [1])
    assert torch.equal(model[0].weight.grad, gradients[0][[0, 2]])
    assert torch.equal(model[1].weight.grad, gradients[1][:, [0, 2]])
