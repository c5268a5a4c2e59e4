"""Fitting is SGD, step by step; measuring is counting."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from pruning_lab.errors import UserError
from pruning_lab.tasks import Classification
from pruning_lab.training.evaluation import evaluate
from pruning_lab.training.fit import fit, part
from pruning_lab.training.recalibration import recalibrate
from pruning_lab.training.recipe import Training

TASK = Classification()


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
    fit(model, training.optimizer(model), data, training, TASK, generator, "test")
    return model


@pytest.mark.parametrize(
    ("momentum", "nesterov", "decay"), [(0.0, False, 0.0), (0.9, True, 0.0), (0.9, False, 0.1)]
)
def test_two_epochs_of_full_batches_are_two_steps_by_hand(momentum, nesterov, decay):
    """g <- g + d w; v <- m v + g; w <- w - lr v, and with Nesterov w <- w - lr (g + m v)."""
    data, model, by_hand = problem(), linear(), linear()
    training = Training(
        epochs=2, lr=0.5, momentum=momentum, nesterov=nesterov, weight_decay=decay, batch_size=8
    )
    fitted(training, data, model=model)
    velocity = [torch.zeros_like(p) for p in by_hand.parameters()]
    for _ in range(2):
        loss = F.cross_entropy(by_hand(data.tensors[0]), data.tensors[1])
        gradients = torch.autograd.grad(loss, list(by_hand.parameters()))
        with torch.no_grad():
            for v, p, g in zip(velocity, by_hand.parameters(), gradients, strict=True):
                g = g + decay * p
                v.mul_(momentum).add_(g)
                p.sub_(0.5 * (g + momentum * v if nesterov else v))
    for mine, theirs in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


class Witness(nn.Linear):
    """Keeps what it sees, and in which mode."""

    def __init__(self):
        super().__init__(3, 4, dtype=torch.float64)
        self.seen, self.modes = [], set()

    def forward(self, x):
        self.seen.append(x.clone())
        self.modes.add(self.training)
        return super().forward(x)


def test_every_sample_is_seen_once_an_epoch_in_train_mode():
    data, model = problem(8), Witness().eval()
    fitted(Training(epochs=3, batch_size=3), data, model=model)
    assert [len(x) for x in model.seen] == [3, 3, 2] * 3
    everything = data.tensors[0].sort(0).values
    epochs = torch.cat(model.seen).view(3, 8, 3)
    assert all(torch.equal(epoch.sort(0).values, everything) for epoch in epochs)
    assert not torch.equal(epochs[0], epochs[1])
    assert model.modes == {True}
    assert not model.training


@pytest.mark.parametrize("length", [{"epochs": 0}, {"steps": 0}])
def test_no_epochs_change_nothing(length):
    for lr_schedule in ("constant", "cosine", "one_cycle"):
        training = Training(**length, lr_schedule=lr_schedule)
        model = fitted(training, problem())
        assert not training
        assert torch.equal(model.weight, linear().weight)
        assert torch.equal(model.bias, linear().bias)


def test_steps_stop_within_an_epoch():
    data, model = problem(8), Witness()
    training = Training(steps=4, batch_size=3)
    fitted(training, data, model=model)
    assert [len(x) for x in model.seen] == [3, 3, 2, 3]
    assert (training.length, Training(epochs=1).length) == ("4 steps", "1 epoch")
    whole = Witness()
    fitted(Training(epochs=2, batch_size=3), data, model=whole)
    assert all(map(torch.equal, model.seen, whole.seen))


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
    fit(model, optimizer, problem(), training, TASK, torch.Generator().manual_seed(0), "test")
    assert len(rates) == 40
    assert max(rates) == pytest.approx(0.3, rel=0.01)
    assert rates[0] < 0.02
    assert rates[-1] < 0.001
    assert {group["momentum"] for group in optimizer.param_groups} == {0.9}
    up, low, end = 11, 0.3 / 25, 0.3 / 25 / 1e4  # 30% of 40 steps climb, half a cosine each way
    by_hand = [0.3 + (low - 0.3) * (1 + math.cos(math.pi * n / up)) / 2 for n in range(up)]
    by_hand += [
        end + (0.3 - end) * (1 + math.cos(math.pi * n / (39 - up))) / 2 for n in range(40 - up)
    ]
    assert rates == pytest.approx(by_hand)


def test_a_cosine_falls_to_nothing_at_each_training():
    model, rates = linear(), []
    training = Training(steps=6, lr=0.3, batch_size=2, lr_schedule="cosine")
    optimizer = training.optimizer(model)
    optimizer.register_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
    for _ in range(2):  # the rate that the first one ends with is not where the second begins
        fit(model, optimizer, problem(), training, TASK, torch.Generator().manual_seed(0), "test")
    by_hand = [0.3 * (1 + math.cos(math.pi * n / 6)) / 2 for n in range(6)]
    assert rates == pytest.approx(by_hand * 2)


def test_a_constant_rate_stays():
    model, rates = linear(), []
    training = Training(epochs=3, lr=0.3, batch_size=2)
    optimizer = training.optimizer(model)
    optimizer.register_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
    fit(model, optimizer, problem(), training, TASK, torch.Generator().manual_seed(0), "test")
    assert rates == [0.3] * 12


def test_a_lone_last_sample_is_left_out():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    fitted(Training(epochs=1, batch_size=4), problem(9), model=model)
    assert model[1].num_batches_tracked == 2


@pytest.mark.parametrize("length", [{"epochs": 1}, {"steps": 5}], ids=str)
def test_training_on_a_single_sample_is_refused(length):
    with pytest.raises(UserError, match=r"test is not possible: .* too few training samples, 1"):
        fitted(Training(batch_size=4, **length), problem(1))


def test_a_loss_that_is_not_finite_stops_with_its_epoch_and_the_learning_rate():
    model = linear()
    with torch.no_grad():
        model.weight[0, 0] = float("nan")
    before = copy.deepcopy(model.state_dict())
    message = r"The loss became nan in epoch 1 of test.*Lower the learning rate \(it is 0.01\)"
    with pytest.raises(UserError, match=message):
        fitted(Training(epochs=3), problem(), model=model)
    assert torch.equal(before["bias"], model.bias)


def test_an_infinite_loss_stops_too():
    model = linear()
    with torch.no_grad():
        model.bias[2] = float("-inf")
    with pytest.raises(UserError, match=r"The loss became inf in epoch 1 of test"):
        fitted(Training(epochs=1), problem(), model=model)


def test_the_epoch_of_the_divergence_is_named():
    """The first step is finite and throws the weights to the edge of what a float64 holds."""
    message = r"The loss became nan in epoch 2 of test.*\(it is 1e\+308\)"
    with pytest.raises(UserError, match=message):
        fitted(Training(epochs=3, lr=1e308, momentum=0.0, batch_size=8), huge(), model=linear())


def huge():
    data = problem()
    return TensorDataset(100 * data.tensors[0], data.tensors[1])


def test_evaluation_counts():
    model = nn.Identity().train()
    outputs = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
    data = TensorDataset(outputs, torch.tensor([0, 1, 1]))
    wrapped = nn.Sequential(model, nn.Dropout(0.99), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        wrapped[2].weight.copy_(torch.eye(2))
    found = evaluate(wrapped, data, TASK, batch_size=2)
    right, wrong = torch.tensor([1 + torch.e**-2, 1 + torch.e**2]).log().tolist()
    assert found.values["accuracy"] == pytest.approx(2 / 3)
    assert found.values["loss"] == pytest.approx((2 * right + wrong) / 3)
    assert found.samples["correct"].tolist() == [True, False, True]
    assert found.samples["losses"] == pytest.approx([right, wrong, right])
    assert found.samples["targets"].tolist() == [0, 1, 1]
    assert found.values["worst_class_accuracy"] == 0.5
    confidence = found.samples["confidence"]
    assert confidence == pytest.approx([math.exp(-right)] * 3)  # all in one bin: 2 / 3 right
    assert found.values["calibration_error"] == pytest.approx(math.exp(-right) - 2 / 3)
    assert wrapped.training


def test_the_calibration_error_weighs_bins_by_their_samples():
    """Bins of 1/15: three of confidence .9 with two right, one of 1.0 that is wrong."""
    values = TASK.measure({
        "correct": np.array([True, True, False, False]), "losses": np.zeros(4),
        "confidence": np.array([0.9, 0.9, 0.9, 1.0]), "targets": np.array([0, 0, 2, 2]),
    })  # fmt: skip
    assert values["calibration_error"] == pytest.approx((abs(2.7 - 2) + 1.0) / 4)
    assert values["worst_class_accuracy"] == 0
    assert values["accuracy"] == 0.5


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_leaves_the_model_as_it_was(training):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double().train(training)
    before = copy.deepcopy(model.state_dict())
    evaluate(model, problem(), TASK)
    assert [m.training for m in model.modules()] == [training] * 3
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("batch_size", [1, 3, 7, 8, 100])
def test_the_measure_does_not_depend_on_the_batches(batch_size):
    model, data = linear(), problem()
    log_likelihood = torch.log_softmax(model(data.tensors[0]), 1)
    answers = log_likelihood.argmax(1).tolist()
    right = sum(a == b for a, b in zip(answers, data.tensors[1].tolist(), strict=True))
    loss = -sum(
        row[target].item() for row, target in zip(log_likelihood, data.tensors[1], strict=True)
    )
    found = evaluate(model, data, TASK, batch_size)
    assert found.values["accuracy"] == right / 8
    assert 0 < found.values["accuracy"] < 1
    assert found.values["loss"] == pytest.approx(loss / 8, rel=1e-12)


def test_a_share_of_the_data_is_drawn_by_the_generator():
    data = problem(20)
    chosen = [part(data, 0.25, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert len(set(chosen[0].indices)) == 5
    assert chosen[0].indices == chosen[1].indices != chosen[2].indices
    assert len(part(data, 0.01, torch.Generator())) == 2
    assert part(data, 1.0, torch.Generator()) is data


@pytest.mark.parametrize(("share", "count"), [(0.33, 7), (0.32, 6), (0.5, 10), (0.95, 19)])
def test_a_share_is_rounded_to_whole_samples(share, count):
    data = problem(20)
    chosen = part(data, share, torch.Generator().manual_seed(0))
    assert len(set(chosen.indices)) == len(chosen) == count
    assert set(chosen.indices) <= set(range(20))
    x, target = chosen[3]
    assert torch.equal(x, data.tensors[0][chosen.indices[3]])
    assert target == data.tensors[1][chosen.indices[3]]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"epochs": -1}, "epochs=-1 is not possible; it is a whole number from 0"),
        ({"lr": 0}, "lr=0 .* above 0"),
        ({"momentum": 1}, "momentum=1 .* below 1"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1 .* from 0 on"),
        ({"batch_size": 1}, "batch_size=1 .* from 2 on"),
        ({"lr_schedule": "step"}, "lr_schedule=step .* one of constant, cosine, one_cycle"),
        ({"epochs": 1, "steps": 1}, "epochs=1 and steps=1: both are given, one perhaps"),
        ({"epochs": None, "steps": None}, "epochs=None and steps=None: none is given"),
        ({"steps": -1}, "steps=-1 is not possible; it is a whole number from 0"),
        ({"nesterov": True, "momentum": 0}, "nesterov=True is not possible with momentum=0"),
        ({"share": 0}, "share=0 .* above 0, at most 1"),
        ({"share": 1.5}, "share=1.5"),
        ({"share": -0.5}, "share=-0.5"),
        ({"momentum": -0.1}, "momentum=-0.1 is not possible; it is a number from 0 to below 1"),
        ({"lr": -0.1}, "lr=-0.1 .* above 0"),
        ({"lr": float("nan")}, "lr=nan is not possible"),
        ({"weight_decay": float("nan")}, "weight_decay=nan is not possible"),
    ],
)
def test_impossible_settings_are_refused(setting, message):
    with pytest.raises(UserError, match=message):
        Training(**({"epochs": 1} if "steps" not in setting else {}) | setting)


def test_values_at_the_border_of_the_possible_are_taken():
    border = {"epochs": 0, "momentum": 0.0, "weight_decay": 0.0, "batch_size": 2, "share": 1.0}
    training = Training(**border)
    assert {name: getattr(training, name) for name in border} == border
    group = training.optimizer(linear()).param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.01, 0.0, 0.0)


def test_one_cycle_ends_low_when_lone_samples_are_left_out():
    model, rates = nn.Linear(3, 4), []
    data = TensorDataset(torch.randn(5, 3), torch.arange(5) % 4)  # 4 + a lone one: 1 step an epoch
    training = Training(epochs=20, lr=0.3, batch_size=4, lr_schedule="one_cycle")
    optimizer = training.optimizer(model)
    optimizer.register_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
    fit(model, optimizer, data, training, TASK, torch.Generator().manual_seed(0), "test")
    assert len(rates) == 20
    assert rates[-1] == pytest.approx(0.3 / 25 / 1e4)


def test_evaluation_does_not_move_the_global_generator():
    model, state = nn.Linear(3, 4), torch.get_rng_state()
    evaluate(model, TensorDataset(torch.ones(5, 3), torch.arange(5) % 4), TASK)
    assert torch.equal(state, torch.get_rng_state())


def test_recalibration_mixes_a_sorted_data_set():
    """Four batches of one class each would all but lose the spread between classes."""
    x = torch.arange(4.0).repeat_interleave(50)[:, None] * 10
    model = nn.BatchNorm1d(1)
    data = TensorDataset(x, torch.zeros(200, dtype=torch.long))
    recalibrate(model, data, 1000, TASK, torch.Generator().manual_seed(0), batch_size=50)
    assert model.running_var.item() == pytest.approx(x.var().item(), rel=0.1)


def test_low_precision_outputs_are_measured():
    model = nn.Linear(3, 4).bfloat16()
    data = TensorDataset(torch.randn(6, 3).bfloat16(), torch.arange(6) % 4)
    found = evaluate(model, data, TASK)
    assert found.samples["losses"].dtype == np.float32
    assert found.values["loss"] > 0


def test_recalibrated_statistics_are_means_over_batches_by_hand():
    x = torch.randn(10, 3) * torch.tensor([1.0, 2.0, 3.0]) + 1
    data = TensorDataset(x, torch.zeros(10, dtype=torch.long))
    model = nn.Sequential(nn.BatchNorm1d(3, momentum=0.3), nn.Dropout(0.5), nn.Linear(3, 2))
    weights = [parameter.clone() for parameter in model.parameters()]
    recalibrate(model, data, 10, TASK, torch.Generator().manual_seed(0), batch_size=5)
    assert model[0].momentum == 0.3
    assert not model.training
    assert not model[0].training
    for before, after in zip(weights, model.parameters(), strict=True):
        assert torch.equal(before, after)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    halves = x[order].split(5)
    mean, var = (
        torch.stack([half.mean(0) for half in halves]).mean(0),
        torch.stack([half.var(0) for half in halves]).mean(0),
    )
    torch.testing.assert_close(model[0].running_mean, mean)
    torch.testing.assert_close(model[0].running_var, var)


def test_recalibration_reads_as_many_samples_as_it_is_told():
    x = torch.arange(40.0).view(40, 1)
    data = TensorDataset(x, torch.zeros(40, dtype=torch.long))
    model = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 2))
    recalibrate(model, data, 8, TASK, torch.Generator().manual_seed(3))
    chosen = torch.randperm(40, generator=torch.Generator().manual_seed(3))[:8]
    torch.testing.assert_close(model[0].running_mean, x[chosen].mean(0))
    torch.testing.assert_close(model[0].running_var, x[chosen].var(0))


def test_batches_are_of_equal_size():
    x = torch.randn(7, 2)
    data = TensorDataset(x, torch.zeros(7, dtype=torch.long))
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
    for batch_size, sizes in ((6, [4, 3]), (3, [3, 2, 2])):  # never a lone one
        recalibrate(model, data, 7, TASK, torch.Generator().manual_seed(1), batch_size=batch_size)
        order = torch.randperm(7, generator=torch.Generator().manual_seed(1))
        means = torch.stack([part.mean(0) for part in x[order].split(sizes)]).mean(0)
        torch.testing.assert_close(model[0].running_mean, means)


def test_a_lone_sample_changes_nothing():
    model = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 2))
    model[0].running_mean.fill_(3)
    recalibrate(model, TensorDataset(torch.randn(1, 1), torch.zeros(1)), 1, TASK, torch.Generator())
    assert model[0].running_mean.item() == 3


def test_momentum_comes_back_when_the_model_fails():
    model = nn.Sequential(nn.BatchNorm1d(1, momentum=0.3), nn.Linear(2, 2))
    with pytest.raises(RuntimeError):
        recalibrate(
            model, TensorDataset(torch.randn(4, 1), torch.zeros(4)), 4, TASK, torch.Generator()
        )
    assert model[0].momentum == 0.3
    assert not model[0].training


def test_models_without_statistics_stay_as_they_are():
    model = nn.Sequential(nn.BatchNorm1d(1, track_running_stats=False), nn.Linear(1, 2))
    recalibrate(model, TensorDataset(torch.randn(4, 1), torch.zeros(4)), 4, TASK, torch.Generator())
    assert model[0].running_mean is None
