"""Models that are written in odd ways: scored as masks on hooks score them, or refused."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pruning_lab.attributions import (
    AttributionMetric,
    RandomAttributionMetric,
    ShapleyAttributionMetric,
    TaylorAttributionMetric,
    WeightNormAttributionMetric,
)
from pruning_lab.attributions.criteria.leave_one_out import LeaveOneOutAttributionMetric
from pruning_lab.attributions.unit_groups import unit_groups_of
from pruning_lab.coupling.structure import find_structure
from pruning_lab.errors import UserError
from tests.oracles import hooked_shapley

UNITS = 6


class Base(nn.Module):
    """A convolution whose units are scored, in front of what is odd."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, UNITS, 3, padding=1)
        self.conv, self.bn = nn.Conv2d(UNITS, UNITS, 3, padding=1), nn.BatchNorm2d(UNITS)
        self.head = nn.Linear(UNITS, 3)

    def last(self, x):
        return self.head(x.mean((2, 3)))


class TakenName(Base):
    """The name of one module is what folding two others might call theirs."""

    def __init__(self):
        super().__init__()
        self.conv_bn = nn.Conv2d(UNITS, UNITS, 3, padding=1)

    def forward(self, x):
        return self.last(F.relu(self.conv_bn(F.relu(self.bn(self.conv(self.first(x)))))))


class SameNames(Base):
    """Two pairs of modules whose joined names are the same."""

    def __init__(self):
        super().__init__()
        self.down, self.down_conv = (nn.Conv2d(UNITS, UNITS, 3, padding=1) for _ in range(2))
        self.conv_norm, self.norm = nn.BatchNorm2d(UNITS), nn.BatchNorm2d(UNITS)
        self.conv_norm.weight.data.fill_(2)

    def forward(self, x):
        x = F.relu(self.conv_norm(self.down(self.first(x))))
        return self.last(self.norm(self.down_conv(x)))


class Discarded(Base):
    """In-place operations whose results are not used, by function, method and module."""

    def __init__(self):
        super().__init__()
        self.elu = nn.ELU(inplace=True)

    def forward(self, x):
        x = self.first(x)
        F.relu_(x)
        y = self.conv(x)
        y.add_(x)
        self.elu(y)
        z = self.bn(y)
        F.leaky_relu(z, 0.2, True)
        return self.last(z)


class Alias(Base):
    """``+=`` on a tensor that has another name, too."""

    def forward(self, x):
        h = self.first(x)
        i = h
        h += self.conv(h)
        return self.last(F.relu(h) + i)


class Optional(Base):
    """An argument that is not given."""

    def forward(self, x, mask=None, scale=2.0):
        x = self.first(x)
        if mask is not None:
            x = x * mask
        return self.last(F.relu(self.conv(x))) * scale


class ChangesItsInput(Base):
    def forward(self, x):
        x.sub_(0.5)
        return self.last(F.relu(self.conv(self.first(x))))


class ScalarCrosses(Base):
    """A number of the whole batch crosses the cut, which has no dimension."""

    def forward(self, x):
        scale = 1 + 0 * x.abs().max()
        return self.last(F.relu(self.conv(self.first(x)))) / scale


class StateCrosses(Base):
    """A recurrent state crosses the cut, whose samples lie in the second dimension."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.GRU(2, 4, num_layers=3, batch_first=True)
        self.decoder = nn.GRU(UNITS, 4, num_layers=3, batch_first=True)
        self.top = nn.Linear(4, 3)

    def forward(self, x):
        _, state = self.encoder(x.flatten(2).transpose(1, 2))
        features = self.first(x).flatten(2).transpose(1, 2)
        return self.top(self.decoder(features, state)[0][:, -1])


class ManyOutputs(Base):
    def forward(self, x):
        x = F.relu(self.first(x))
        return self.last(self.conv(x)), x, {"one more": x.sum()}


class Conjunction(Base):
    """Operators whose names end like those of in-place operations."""

    def forward(self, x):
        x = self.first(x)
        a, b = x > 0, x < 1
        both = a & b
        return self.last(x * a + x * both + x * (a | b))


class InputHasADefault(Base):
    def forward(self, x=None):
        return self.last(F.relu(self.conv(self.first(x))))


MODELS = [TakenName, SameNames, Discarded, Alias, Optional, ChangesItsInput, ScalarCrosses,
          StateCrosses, ManyOutputs, Conjunction, InputHasADefault]  # fmt: skip
ORDERS = [[3, 0, 5, 1, 4, 2], [0, 1, 2, 3, 4, 5]]


def data(sizes=(3, 1)):
    stream = torch.Generator().manual_seed(0)
    return [
        (torch.randn(n, 2, 4, 4, generator=stream, dtype=torch.float64),
         torch.randint(3, (n,), generator=stream))
        for n in sizes
    ]  # fmt: skip


def loss(output, target, reduction="none"):
    found = output[0] if isinstance(output, tuple) else output
    return F.cross_entropy(found, target, reduction=reduction)


def built(make):
    torch.manual_seed(0)
    model = make().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("make", MODELS)
def test_shapley_values_are_those_of_masks_on_hooks(make):
    model, batches = built(make), data()
    before = [x.clone() for x, _ in batches]
    expected = hooked_shapley.shapley(model, model.first, UNITS, batches, loss, ORDERS)
    metric = ShapleyAttributionMetric(model, batches, loss, "cpu", "none", permutations=ORDERS)
    found = metric.run(model.first)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    assert all(torch.equal(x, old) for (x, _), old in zip(batches, before, strict=True))


@pytest.mark.parametrize("make", [each for each in MODELS if each is not Alias])  # torch cannot
def test_gradients_are_those_of_the_model_itself(make):
    model, batches = built(make), data()
    metric = TaylorAttributionMetric(model, batches, loss, "cpu", "none", signed=True)
    found, rows, seen = metric.run(model.first), [], []

    def mask(module, args, output):
        seen.append(torch.ones(1, UNITS, 1, 1, dtype=torch.float64, requires_grad=True))
        return output * seen[-1]

    handle = model.first.register_forward_hook(mask)
    for batch, targets in batches:
        for x, target in zip(batch.split(1), targets.split(1), strict=True):
            value = loss(model(x.clone()), target).sum()
            rows.append(-torch.autograd.grad(value, seen[-1])[0].flatten().numpy())
    handle.remove()
    np.testing.assert_allclose(found, rows, rtol=1e-9, atol=1e-12)


def test_maps_of_another_size_in_a_later_batch_are_no_trouble():
    torch.manual_seed(0)
    wide = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.BatchNorm2d(256), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 2),
    ).double().eval()  # fmt: skip
    wide[5].running_mean.normal_()
    wide[5].running_var.uniform_(0.5, 2)
    stream = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(2, 3, *size, generator=stream, dtype=torch.float64), torch.tensor([0, 1]))
        for size in ((2, 3), (3, 2))
    ]
    orders = [[7, 1, 0, 2, 4, 6, 3, 5]]
    expected = hooked_shapley.shapley(wide, wide[1], 8, batches, F.cross_entropy, orders)
    metric = ShapleyAttributionMetric(
        wide, batches, F.cross_entropy, "cpu", "none", permutations=orders
    )
    np.testing.assert_allclose(metric.run(wide[0], True), expected, rtol=1e-9, atol=1e-12)


def test_wide_entries_need_no_more_memory_than_they_may(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, UNITS, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * UNITS, 5)
    )
    metric = ShapleyAttributionMetric(
        model.double().eval(), data(), F.cross_entropy, "cpu", "none", sv_samples=4
    )
    whole = metric.run(model[0], True)
    for bytes_ in (1, 3 * 16 * 5 * 8, 8 * 16 * 5 * 8):  # less than one unit's, three, eight
        monkeypatch.setattr("pruning_lab.partial_forward.first_layer.WEIGHTS", bytes_)
        np.testing.assert_allclose(metric.run(model[0], True), whole, rtol=1e-12)


def test_a_shuffling_loader_gives_every_layer_and_round_the_same_samples():
    x, target = (torch.cat(each) for each in zip(*data((9,)), strict=True))
    dataset = torch.utils.data.TensorDataset(x, target)
    model, seen = built(Discarded), []

    class Spied(torch.utils.data.Dataset):
        def __len__(self):
            return 9

        def __getitem__(self, index):
            seen.append(index)
            return dataset[index]

    loader = torch.utils.data.DataLoader(Spied(), 2, shuffle=True)
    metric = ShapleyAttributionMetric(
        model, loader, loss, "cpu", samples=4, sv_samples=4, relative_error=1e-6, evaluations=2000
    )
    state = torch.get_rng_state()
    metric.run_layers([model.first, model.conv])
    assert torch.equal(torch.get_rng_state(), state)
    assert len(set(seen)) == 9  # rounds add all others to the first 4
    assert seen.count(seen[0]) >= 4  # two layers, two rounds


def test_a_loaders_own_generator_is_put_back_for_every_pass():
    x, target = (torch.cat(each) for each in zip(*data((9,)), strict=True))
    generator = torch.Generator().manual_seed(3)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x, target), 4, shuffle=True, generator=generator
    )
    order = torch.cat([y for _, y in loader])
    generator.manual_seed(3)
    model, seen = built(Discarded), []

    def spied(output, target, reduction):
        seen.append(target)
        return F.cross_entropy(output, target, reduction=reduction)

    metric = TaylorAttributionMetric(model, loader, spied, "cpu")
    metric.run(model.first)
    assert torch.equal(torch.cat(seen)[-len(order) :], order)  # two of them are looked at before
    ShapleyAttributionMetric(model, loader, loss, "cpu", sv_samples=2).run(model.first)


def test_a_loss_of_0_and_coarse_numbers_are_no_errors():
    model = built(Optional)
    x = torch.cat([x for x, _ in data()])
    batches = [(x, model(x))]

    def distance(output, target, reduction):
        return F.mse_loss(output, target, reduction=reduction)

    orders = [[0, 1, 2, 3, 4, 5]]
    exact, coarse = (
        ShapleyAttributionMetric(
            model.to(kind), [tuple(each.to(kind) for each in batches[0])], distance, "cpu",
            permutations=orders,
        ).run(model.first)
        for kind in (torch.float64, torch.bfloat16)
    )  # fmt: skip
    assert exact.sum() > 0
    np.testing.assert_allclose(coarse, exact, atol=0.1 * np.abs(exact).max())


class Residual(Base):
    """The units of two layers, added, are one player."""

    def forward(self, x):
        x = self.first(x)
        return self.last(F.relu(x + self.conv(x)))


def test_joint_players_of_a_model_in_bfloat16():
    model, batches = built(Residual), data()
    group = find_structure(model, (2, 4, 4)).groups["first"]
    found = []
    for kind in (torch.float64, torch.bfloat16):
        some = [(x.to(kind), target) for x, target in batches]
        metric = ShapleyAttributionMetric(model.to(kind), some, loss, "cpu", sv_samples=2)
        found.append(metric.estimate([unit_groups_of(model, group)])[0].scores)
    assert np.abs(found[0]).max() > 1e-3
    np.testing.assert_allclose(found[1], found[0], atol=0.1 * np.abs(found[0]).max())


def test_a_layer_without_a_score_is_told_of_before_any_other_is_scored():
    class Unused(Base):
        def forward(self, x):
            self.conv(x[:, :1].expand(-1, UNITS, -1, -1))
            return self.last(self.first(x))

    model, asked = built(Unused), []

    def counted(output, target, reduction):
        asked.append(len(target))
        return F.cross_entropy(output, target, reduction=reduction)

    metric = ShapleyAttributionMetric(model, data(), counted, "cpu")
    with pytest.raises(UserError, match="does not depend on"):
        metric.run_layers([model.first, model.conv])
    assert not asked


class TimeFirst(nn.Module):
    """The samples lie in the second dimension of the layer's output."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(16, UNITS), nn.Linear(UNITS, 3)

    def forward(self, x):
        return self.head(F.relu(self.first(x.flatten(2).transpose(0, 1))).mean(0))


class BatchStatistics(Base):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(UNITS, track_running_stats=False)

    def forward(self, x):
        return self.last(self.bn(self.first(x)))


@pytest.mark.parametrize("kind", [ShapleyAttributionMetric, TaylorAttributionMetric])
@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (TimeFirst, {}, "tensor with the samples in its first dimension; of two samples"),
        (BatchStatistics, {}, "'bn' takes its statistics from the batch"),
        (Optional, {"data": iter([])}, "can be read only once"),
        (Optional, {"data": [(1, 2, 3)]}, "The inputs of a batch must be a tensor.*a tuple"),
        (Optional, {"data": [{"x": 1}]}, "A batch must be a pair.*a dict of 1"),
        (Optional, {"criterion": nn.CrossEntropyLoss()}, r"takes no reduction.*torch\.nn\.func"),
        (Optional, {"criterion": lambda output, target: 0}, "takes no reduction.*loss a sample"),
    ],
    ids=[
        "time first", "batch statistics", "an iterator", "triples", "dicts", "a loss module",
        "a loss of two arguments",
    ],
)  # fmt: skip
def test_what_cannot_be_scored_says_why(kind, make, settings, message):
    model, settings = built(make), {"data": data(), "criterion": F.cross_entropy} | settings
    metric = kind(model, settings["data"], settings["criterion"], "cpu")
    with pytest.raises(UserError, match=message):
        metric.run(model.first)


def test_losses_that_are_not_finite_are_told_of():
    model = built(Optional)
    metric = ShapleyAttributionMetric(
        model, data(), lambda output, target, reduction: output[:, 0] / 0, "cpu", evaluations=500
    )
    with pytest.raises(UserError, match=r"6 of 6 scores are not finite"):
        metric.run(model.first)


@pytest.mark.parametrize("kind", [WeightNormAttributionMetric, RandomAttributionMetric])
def test_a_module_of_another_model_is_refused(kind):
    metric: AttributionMetric = kind(built(Optional), data(), loss, "cpu")
    with pytest.raises(UserError, match="This Conv2d is not part of the model"):
        metric.run(nn.Conv2d(1, 1, 1))


class KeepsItsFeatures(Base):
    def __init__(self):
        super().__init__()
        self.features, self.seen, self.calls = None, {}, 0

    def forward(self, x):
        self.calls += 1
        self.features = self.seen["first"] = self.first(x)
        return self.last(self.features)


def test_what_the_code_writes_to_its_modules_is_no_trace():
    from pruning_lab.partial_forward.traced import trace

    model = built(KeepsItsFeatures)
    trace(model)
    assert (model.features, model.seen, model.calls) == (None, {}, 0)


@pytest.mark.parametrize("kind", ["hook", "method"])
def test_what_changes_activations_on_their_way_to_the_next_layer_is_refused_by_masks(kind):
    """Contributions of units one by one would pass it by."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).double().eval()
    if kind == "hook":
        model[1].register_forward_hook(lambda m, i, o: o / (1 + o.mean(1, keepdim=True)))
    else:
        model[2]._call_impl = lambda x: F.linear(x, model[2].weight * (x.mean() + 1), model[2].bias)
    data = [(torch.randn(4, 5).double(), torch.arange(4) % 3)]
    metric = LeaveOneOutAttributionMetric(model, data, F.cross_entropy, "cpu", "none")
    with pytest.raises(UserError, match=r"Without half of the units|depends on the other samples"):
        metric.run(model[0])


def test_the_units_of_a_layer_whose_hook_turns_its_output_are_found():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Flatten(), nn.Linear(32, 3)).double().eval()
    model[0].register_forward_hook(lambda m, i, o: o.transpose(1, 2))
    data = [(torch.randn(6, 4, 5).double(), torch.arange(6) % 3)]
    metric = TaylorAttributionMetric(model, data, F.cross_entropy, "cpu", "none")
    assert metric.run(model[0]).shape == (6, 8)


def test_an_activation_in_place_after_the_next_layer_changes_no_score():
    """What the next layer gives is overwritten by the ReLU; the scores are those without."""

    def network(inplace):
        torch.manual_seed(0)
        layers = [
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace),
            nn.Conv2d(4, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(inplace),
            nn.Flatten(), nn.Linear(5 * 36, 3),
        ]  # fmt: skip
        return nn.Sequential(*layers).eval()

    batch = [(torch.randn(6, 1, 6, 6), torch.arange(6) % 3)]
    found = []
    for inplace in (True, False):
        model = network(inplace)
        metric = ShapleyAttributionMetric(model, batch, F.cross_entropy, "cpu", sv_samples=2)
        found.append(metric.run(model[0], find_best_evaluation_module=True))
    np.testing.assert_allclose(*found, rtol=1e-6)
    assert len(set(found[0])) == 4
