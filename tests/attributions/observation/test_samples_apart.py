"""A sample's loss is its own: what mixes the samples of a batch is refused, nothing else is."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pruning_lab.attributions import (
    APoZAttributionMetric,
    ShapleyAttributionMetric,
    TaylorAttributionMetric,
)
from pruning_lab.attributions.unit_groups import units_of_module
from pruning_lab.errors import UserError

X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
CLASSES, NUMBERS = torch.tensor([1, 1, 0, 2, 1, 0]), torch.linspace(0, 1, 6)


def network(outputs, first=None):
    torch.manual_seed(0)
    layers = [nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, outputs)]
    return nn.Sequential(*([first] if first else []), *layers).eval()


def check(model, criterion, target, kind=TaylorAttributionMetric, layer=0, x=X):
    kind(model, [(x, target)], criterion, "cpu").check([units_of_module(model[layer])])


def averaged(output, target, reduction):
    return F.cross_entropy(output, target, reduction=reduction).mean().expand(len(target))


def divided(output, target, reduction):
    return F.cross_entropy(output, target, reduction=reduction) / len(target)


def weighted(output, target, reduction):
    weights = torch.tensor([1.0, 5.0, 2.0])[target]
    return F.cross_entropy(output, target, reduction=reduction) * weights / weights.sum()


def contrasted(output, target, reduction):
    return F.cross_entropy(output @ output.T, torch.arange(len(output)), reduction=reduction)


def squared_row(output, target, reduction):
    return ((output - target) ** 2).mean(1)


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("kind", [TaylorAttributionMetric, ShapleyAttributionMetric])
@pytest.mark.parametrize("loss", [F.mse_loss, F.l1_loss, F.huber_loss])
def test_outputs_that_are_broadcast_against_the_targets_are_refused(loss, kind):
    words = r"output \(2, 1\), target \(2,\)\). Squeeze the output, or unsqueeze the target"
    with pytest.raises(UserError, match=words):
        check(network(1), loss, NUMBERS, kind)
    with pytest.raises(UserError, match=words):  # whatever the targets are
        check(network(1), loss, torch.zeros(6), kind)
    check(network(1), loss, NUMBERS[:, None], kind)


@pytest.mark.parametrize(
    ("criterion", "target", "outputs"),
    [
        (averaged, CLASSES, 3),
        (divided, CLASSES, 3),
        (weighted, CLASSES, 3),
        (contrasted, CLASSES, 3),
        (squared_row, NUMBERS, 1),
    ],
)
def test_losses_over_the_batch_are_refused(criterion, target, outputs):
    with pytest.raises(UserError, match="A sample's loss depends on the other samples"):
        check(network(outputs), criterion, target)


def test_a_loss_without_a_way_back_is_refused_where_gradients_are_needed():
    with pytest.raises(UserError, match="No gradient leads from the loss back"):
        check(network(3), lambda o, t, reduction: F.cross_entropy(o.detach(), t, reduction="none"),
              CLASSES)  # fmt: skip
    with pytest.raises(UserError, match=r"\(2, ...\); it gave a float"):
        check(network(3), lambda o, t, reduction: 1.0, CLASSES)


class Recurrent(nn.Module):
    """Takes the batch for time, unless it is told."""

    def __init__(self, batch_first):
        super().__init__()
        self.cell = nn.GRU(1, 3, batch_first=batch_first)

    def forward(self, x):
        return self.cell(x[:, :, None])[0][:, -1]


class Centred(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


class Divided(nn.Module):
    def forward(self, x):
        return x / len(x)


class Crowded(nn.Module):
    def forward(self, x):
        return x - x.mean(0) if len(x) > 3 else x


class Noisy(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)


@pytest.mark.parametrize("kind", [TaylorAttributionMetric, APoZAttributionMetric])
@pytest.mark.parametrize("make", [lambda: Recurrent(False), Centred, Divided, Crowded])
def test_models_that_mix_samples_are_refused(make, kind):
    with pytest.raises(UserError, match="for a sample depends on the other samples of its batch"):
        check(network(3, make()), F.cross_entropy, CLASSES, kind, 1)


@pytest.mark.parametrize("make", [lambda: Recurrent(True), Noisy, nn.Identity])
def test_models_that_do_not_are_taken(make):
    check(network(3, make()), F.cross_entropy, CLASSES, layer=1)


def test_every_sample_against_every_other_is_no_output():
    model = network(3)
    model.append(nn.Module())
    model[3].forward = lambda x: x @ x.T
    with pytest.raises(UserError, match=r"a tensor \(2, 2\), for 3 one of \(3, 3\)"):
        check(model, F.cross_entropy, CLASSES)


class TimeFirst(nn.Module):
    """(time, samples, classes), as CTC takes it, beside a number of the whole batch."""

    def forward(self, x):
        return {"log": torch.stack([x, 2 * x]).log_softmax(2), "scale": x.new_ones(())}


def ctc(output, target, reduction):
    lengths = torch.full((len(target),), 2), torch.ones(len(target), dtype=torch.long)
    return F.ctc_loss(output["log"], target[:, None], *lengths, reduction=reduction)


def test_losses_of_any_output_are_taken_where_each_is_of_its_sample():
    model = network(4).append(TimeFirst())
    check(model, ctc, CLASSES + 1)


def test_losses_of_tokens_may_ignore_some():
    model = network(3).append(nn.Unflatten(1, (3, 1)))  # (samples, classes, tokens)
    check(model, lambda *a, **k: F.cross_entropy(*a, ignore_index=1, **k), CLASSES[:, None])


def test_a_model_that_knows_its_data_by_heart_is_taken():
    model = network(3)
    with torch.no_grad():
        model[2].weight.zero_()
        model[2].bias.copy_(torch.tensor([0.0, 30.0, 0.0]))
    check(model, F.cross_entropy, torch.ones(6, dtype=torch.long))


class Centred(nn.Module):
    """Takes the mean of all that it is given."""

    def __init__(self):
        super().__init__()
        self.hidden, self.top = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.top(torch.relu(self.hidden(x) - x.mean()))


def test_samples_that_come_one_by_one_are_not_mixed_and_scored():
    torch.manual_seed(0)
    model = Centred().double().eval()
    x, y = torch.randn(3, 5, dtype=torch.float64), torch.arange(3)
    alone = [(x[[k]], y[[k]]) for k in range(3)]
    found = TaylorAttributionMetric(model, alone, F.cross_entropy, "cpu", "none", signed=True)
    rows = []
    for one, target in alone:
        h = model.hidden(one).detach().requires_grad_()
        loss = F.cross_entropy(model.top(torch.relu(h - one.mean())), target)
        rows.append(-(torch.autograd.grad(loss, h)[0] * h)[0].detach().numpy())
    np.testing.assert_allclose(found.run(model.hidden), rows, atol=1e-12)
    mixed = [*alone, (x[:2], y[:2])]
    with pytest.raises(UserError, match="depends on the other samples of its batch"):
        TaylorAttributionMetric(model, mixed, F.cross_entropy, "cpu").run(model.hidden)


class ByPlace(nn.Module):
    """Adds what belongs to a place in the batch, as a sample-last encoding does."""

    def __init__(self):
        super().__init__()
        self.hidden, self.top = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x):
        h = self.hidden(x)
        return self.top(torch.relu(h + torch.arange(len(h))[:, None]))


def nearest_of_its_class(output, target, reduction):
    alike = (target[:, None] == target[None]).to(output)
    mean = alike @ output / alike.sum(1, keepdim=True)
    return F.cross_entropy(output, target, reduction=reduction) + ((output - mean) ** 2).sum(1)


def test_what_goes_with_the_place_in_the_batch_is_refused():
    torch.manual_seed(0)
    model = ByPlace().eval()
    with pytest.raises(UserError, match="depends on the other samples of its batch"):
        TaylorAttributionMetric(model, [(X, CLASSES)], F.cross_entropy, "cpu").run(model.hidden)


def test_a_loss_that_mixes_the_samples_of_a_class_is_refused():
    model = network(3)
    with pytest.raises(UserError, match="loss depends on the other samples of its batch"):
        TaylorAttributionMetric(model, [(X, CLASSES)], nearest_of_its_class, "cpu").run(model[0])
