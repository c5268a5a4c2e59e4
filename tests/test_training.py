"""Fitting is SGD, step by step; measuring is counting."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from pruning_lab.errors import UserError
from pruning_lab.training import Training, evaluate, fit, part


def problem(samples=8, features=3, classes=4):
    stream = torch.Generator().manual_seed(0)
    x = torch.randn(samples, features, generator=stream, dtype=torch.float64)
    return TensorDataset(x, torch.arange(samples) % classes)


def linear():
    torch.manual_seed(0)
    return nn.Linear(3, 4).double()


def fitted(training, data, seed=0, model=None):
    model = model or linear()
    generator = torch.Generator().manual_seed(seed)
    fit(model, training.optimizer(model), data, training, generator, "test")
    return model


def test_two_epochs_of_full_batches_are_two_steps_by_hand():
    """v <- m v + g + d w; w <- w - lr v, with m = 0.9 and d = 0.1."""
    data, model, by_hand = problem(), linear(), linear()
    training = Training(epochs=2, lr=0.5, momentum=0.9, weight_decay=0.1, batch_size=8)
    fitted(training, data, model=model)
    velocity = [torch.zeros_like(p) for p in by_hand.parameters()]
    for _ in range(2):
        loss = F.cross_entropy(by_hand(data.tensors[0]), data.tensors[1])
        gradients = torch.autograd.grad(loss, list(by_hand.parameters()))
        with torch.no_grad():
            for v, p, g in zip(velocity, by_hand.parameters(), gradients, strict=True):
                v.mul_(0.9).add_(g + 0.1 * p)
                p.sub_(0.5 * v)
    for mine, theirs in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_the_generator_alone_draws_the_order():
    training = Training(epochs=2, lr=0.1, batch_size=3)
    torch.manual_seed(1)
    first = fitted(training, problem(), seed=5).weight
    torch.manual_seed(2)
    assert torch.equal(first, fitted(training, problem(), seed=5).weight)
    assert not torch.equal(first, fitted(training, problem(), seed=6).weight)


def test_one_cycle_climbs_to_the_peak_and_ends_near_nothing():
    model, rates = linear(), []
    training = Training(epochs=10, lr=0.3, batch_size=2, lr_schedule="one_cycle")
    optimizer = training.optimizer(model)
    optimizer.register_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
    fit(model, optimizer, problem(), training, torch.Generator().manual_seed(0), "test")
    assert len(rates) == 40
    assert max(rates) == pytest.approx(0.3, rel=0.01)
    assert rates[0] < 0.02
    assert rates[-1] < 0.001
    assert {group["momentum"] for group in optimizer.param_groups} == {0.9}


def test_a_lone_last_sample_is_left_out():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    fitted(Training(epochs=1, batch_size=4), problem(9), model=model)
    assert model[1].num_batches_tracked == 2


def test_a_loss_that_is_not_finite_stops_with_its_epoch_and_the_learning_rate():
    model = linear()
    with torch.no_grad():
        model.weight[0, 0] = float("nan")
    before = copy.deepcopy(model.state_dict())
    message = r"The loss became nan in epoch 1 of test.*Lower the learning rate \(it is 0.01\)"
    with pytest.raises(UserError, match=message):
        fitted(Training(epochs=3), problem(), model=model)
    assert torch.equal(before["bias"], model.bias)


def test_evaluation_counts():
    model = nn.Identity().train()
    outputs = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
    data = TensorDataset(outputs, torch.tensor([0, 1, 1]))
    wrapped = nn.Sequential(model, nn.Dropout(0.99), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        wrapped[2].weight.copy_(torch.eye(2))
    found = evaluate(wrapped, data, batch_size=2)
    right, wrong = torch.tensor([1 + torch.e**-2, 1 + torch.e**2]).log().tolist()
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.loss == pytest.approx((2 * right + wrong) / 3)
    assert wrapped.training


def test_a_share_of_the_data_is_drawn_by_the_generator():
    data = problem(20)
    chosen = [part(data, 0.25, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert len(set(chosen[0].indices)) == 5
    assert chosen[0].indices == chosen[1].indices != chosen[2].indices
    assert len(part(data, 0.01, torch.Generator())) == 2
    assert part(data, 1.0, torch.Generator()) is data


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"epochs": -1}, "epochs=-1 is not possible; it is 0 or more"),
        ({"lr": 0}, "lr=0 .* above 0"),
        ({"momentum": 1}, "momentum=1 .* below 1"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1 .* 0 or more"),
        ({"batch_size": 1}, "batch_size=1 .* at least 2"),
        ({"lr_schedule": "cosine"}, "lr_schedule=cosine .* one of constant, one_cycle"),
        ({"share": 0}, "share=0 .* above 0 and at most 1"),
        ({"share": 1.5}, "share=1.5"),
    ],
)
def test_impossible_settings_are_refused(setting, message):
    with pytest.raises(UserError, match=message):
        Training(**{"epochs": 1} | setting)
