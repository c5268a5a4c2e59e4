"""The scenarios of the original TorchPruner, and its calls."""

import copy

import pytest
import torch
from torch import nn

from pruning_lab.pruner import Pruner


def test_prune_parameter_keeps_the_parameter_object():
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
    pruner, module = Pruner(model, input_size=(3,), device="cpu"), model[0]
    before, weight = id(module.weight), module.weight.detach().clone()
    pruner.prune_parameter(module, "weight", [0], axis=0)
    pruner.prune_parameter(module, "bias", [0], axis=0)
    pruner.prune_parameter(module, "weight", [0], axis=1)
    assert id(module.weight) == before
    assert torch.equal(module.weight, weight[1:, 1:])
    assert module.bias.shape == (1,)


def test_prune_module_in_both_directions():
    module = nn.Linear(3, 2)
    weight = module.weight.detach().clone()
    pruner = Pruner(nn.Sequential(module), input_size=(3,), device="cpu")
    pruner.prune_module(module, [0], direction="out")
    pruner.prune_module(module, [1], direction="in")
    assert torch.equal(module.weight, weight[1:, [0, 2]])
    assert (module.in_features, module.out_features) == (2, 1)


@pytest.mark.parametrize("explicit", [False, True])
def test_linear_batchnorm_linear(explicit):
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    with torch.no_grad():
        model[1].running_mean.copy_(torch.tensor([7.0, 8.0]))
    last = model[2].weight.detach().clone()
    followers = [model[1], model[2]] if explicit else None
    Pruner(model, (3,), "cpu").prune_model(model[0], [0], cascading_modules=followers)
    assert model[1].running_mean.tolist() == [8]
    assert (model[1].num_features, model[2].in_features) == (1, 1)
    assert torch.equal(model[2].weight, last[:, 1:])
    assert model(torch.ones(4, 3)).shape == (4, 1)


def test_a_channel_behind_flatten_takes_its_block_of_inputs_along():
    model = nn.Sequential(nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 1))
    last = model[3].weight.detach().clone()
    Pruner(model, (1, 3, 3), "cpu").prune_model(model[0], [0])
    assert torch.equal(model[3].weight, last[:, 4:])


def test_pooling_to_one_position_leaves_one_input_a_channel():
    model = nn.Sequential(
        nn.Conv2d(1, 3, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3, 1)
    )
    last = model[4].weight.detach().clone()
    Pruner(model, (1, 3, 3), "cpu").prune_model(model[0], [1])
    assert torch.equal(model[4].weight, last[:, [0, 2]])


def test_dropout_drops_the_same_number_of_units_on_average():
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.4), nn.Linear(4, 1))
    Pruner(model, (3,), "cpu").prune_model(model[0], [0])
    assert model[1].p == pytest.approx(0.3)  # 0.4 x (1 - 1/4)


def test_prune_module_on_dropout_needs_the_original_width():
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.4), nn.Linear(4, 1))
    pruner = Pruner(model, (3,), "cpu")
    pruner.prune_module(model[1], [0, 1], direction="in", original_len=4)
    assert model[1].p == pytest.approx(0.2)
    with pytest.raises(ValueError, match="has no width: original_len must give it"):
        pruner.prune_module(model[1], [0], direction="in")


def test_original_len_expands_units_to_blocks_of_inputs():
    module = nn.Linear(12, 1)
    weight = module.weight.detach().clone()
    pruner = Pruner(nn.Sequential(module), (12,), "cpu")
    pruner.prune_module(module, [1], direction="in", original_len=3)
    assert torch.equal(module.weight, weight[:, [0, 1, 2, 3, 8, 9, 10, 11]])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_goes_on_after_the_cut(momentum):
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum)

    def step():
        optimizer.zero_grad()
        model(torch.ones(10, 3)).sum().backward()
        optimizer.step()

    step()
    velocity = copy.deepcopy(optimizer.state[model[0].weight].get("momentum_buffer"))
    Pruner(model, (3,), "cpu", optimizer).prune_model(model[0], [0])
    if momentum:
        assert torch.equal(optimizer.state[model[0].weight]["momentum_buffer"], velocity[1:])
    step()
    assert model[0].weight.shape == (1, 3)


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.drop, self.fc2 = nn.Linear(2, 4), nn.Dropout(0.4), nn.Linear(4, 1)

    def forward(self, x):
        x = self.drop(self.fc1(x))
        return self.fc2(x if x.sum() > 0 else -x)


def test_explicit_followers_serve_a_model_that_cannot_be_traced():
    model = Untraceable()
    pruner = Pruner(model, (2,), "cpu")
    with pytest.raises(ValueError, match=r"cannot be traced.*cascading_modules=\[\.\.\.\]"):
        pruner.prune_model(model.fc1, [0])
    pruner.prune_model(model.fc1, [0], cascading_modules=[model.drop, model.fc2])
    assert model(torch.ones(3, 2)).shape == (3, 1)
    assert model.drop.p == pytest.approx(0.3)


def test_a_pruned_model_can_be_copied_and_pruned_again():
    model = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 1))
    pruner = Pruner(model, (2,), "cpu")
    pruner.prune_model(model[0], [0, 3])
    again = copy.deepcopy(model)
    Pruner(again, (2,), "cpu").prune_model(again[0], torch.tensor([1]))
    pruner.prune_model(model[0], [1, 1])
    assert pruner.kept == {"0": [1, 4, 5]}
    x = torch.randn(3, 2)
    assert torch.equal(model(x), again(x))


def test_no_indices_change_nothing():
    model = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5), nn.Linear(3, 1))
    pruner = Pruner(model, (2,), "cpu")
    pruner.prune_model(model[0], [])
    assert (model[0].out_features, model[1].p, pruner.kept) == (3, 0.5, {})


def test_rates_stay_where_they_are_not_to_fall():
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.4), nn.Linear(4, 1))
    Pruner(model, (3,), "cpu", rescale_dropout=False).prune_model(model[0], [1])
    assert (model[1].p, model[2].in_features) == (0.4, 3)
