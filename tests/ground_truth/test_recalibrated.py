"""Removals with BatchNorm statistics of their own, against a slow twin and by hand."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from pruning_lab.attributions.evidence.removals import RemovalMetric, sets_of
from pruning_lab.attributions.unit_groups import UnitGroups, units_of_module
from pruning_lab.datasets import loader
from pruning_lab.errors import UserError
from pruning_lab.ground_truth.recalibrated import RecalibratedRemovals, calibration_pictures
from pruning_lab.models.resnet_cifar import ResNet
from pruning_lab.partial_forward.hooked import HookedCut
from pruning_lab.tasks import Classification
from pruning_lab.training.recalibration import recalibrate

TASK = Classification()


def data(count, shape=(1, 8, 8), seed=0):
    stream = torch.Generator().manual_seed(seed)
    x = torch.randn(count, *shape, generator=stream, dtype=torch.float64)
    return TensorDataset(x, torch.arange(count) % 3)


def trained(model, seed=0):
    """The network in float64, with scales, shifts and statistics that are not those of a start."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(tensor, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model.double().eval()


def measured(model, unit_groups, removed, pictures, tested=None):
    batches = loader(tested or data(11, seed=1), 4)
    metric = RecalibratedRemovals(model, batches, TASK, "cpu")
    return metric.outcomes(unit_groups, removed, pictures)


def by_hooks(model, places, removed, pictures, tested):
    """Each set by itself: hooks put units to 0, torch's BatchNorm averages over the batches.

    ``places`` are (module whose output is masked, player of each of its units).
    """
    losses, right = [], []
    for gone in removed:
        twin = copy.deepcopy(model)
        names = {module: name for name, module in model.named_modules()}
        for module, row in places:
            keep = torch.tensor(
                [float(unit_group < 0 or not gone[unit_group]) for unit_group in row]
            )
            twin.get_submodule(names[module]).register_forward_hook(
                lambda module, given, output, keep=keep: (
                    output * keep.view(1, -1, *[1] * (output.ndim - 2))
                )
            )
        for module in twin.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.reset_running_stats()
                module.momentum = None
                module.train()
        with torch.no_grad():
            for batch in pictures:
                twin(batch)
            x, target = tested.tensors
            output = twin.eval()(x)
        losses.append(F.cross_entropy(output, target, reduction="none"))
        right.append(output.argmax(1) == target)
    return torch.stack(losses, 1).numpy(), torch.stack(right, 1).numpy()


def agree(found, expected):
    np.testing.assert_allclose(found.losses, expected[0], rtol=1e-9)
    np.testing.assert_array_equal(found.right, expected[1])


@pytest.fixture
def convnet():
    return trained(nn.Sequential(
        nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.ReLU(inplace=True), nn.Conv2d(5, 4, 3, 2),
        nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 6), nn.BatchNorm1d(6), nn.ReLU(),
        nn.Dropout(0.5), nn.Linear(6, 3),
    ))  # fmt: skip


def test_a_layer_against_hooks_and_torchs_own_batchnorm(convnet):
    tested, pictures = data(11, seed=1), [data(6, seed=n).tensors[0] for n in (2, 3)]
    removed = np.concatenate([sets_of(5, 1), sets_of(5, 3), np.zeros((1, 5), dtype=bool)])
    found = measured(convnet, units_of_module(convnet[0]), removed, pictures)
    agree(found, by_hooks(convnet, [(convnet[2], range(5))], removed, pictures, tested))
    stale = measured(convnet, units_of_module(convnet[0]), removed, [])
    assert np.abs(stale.losses - found.losses).mean() > 0.1  # the statistics matter


def test_units_that_go_together_in_several_layers(convnet):
    """Two units of the first layer and one of the third are one player; some never go."""
    rows = [torch.tensor([0, 0, 1, -1, 2]), torch.tensor([0, 1, 2, -1, -1, 1])]
    unit_groups = UnitGroups({convnet[0]: rows[0], convnet[7]: rows[1]})
    tested, pictures = data(11, seed=1), [data(6, seed=2).tensors[0]]
    removed = np.concatenate([sets_of(3, 1), sets_of(3, 2)])
    places = [(convnet[2], rows[0].tolist()), (convnet[9], rows[1].tolist())]
    found = measured(convnet, unit_groups, removed, pictures)
    agree(found, by_hooks(convnet, places, removed, pictures, tested))


def test_residual_sums():
    """The units of a stage go in all layers whose outputs are added."""
    model = trained(ResNet(depth=8, num_classes=3, in_channels=1))
    tested, pictures = data(9, seed=1), [data(6, seed=2).tensors[0]]
    removed = np.random.default_rng(0).random((3, 32)) < 0.3
    sites = {"blocks.1.conv2": "blocks.1.norm2", "blocks.1.shortcut.0": "blocks.1.shortcut.1"}
    row = torch.arange(32)
    unit_groups = UnitGroups({model.get_submodule(name): row for name in sites})
    places = [(model.get_submodule(name), row.tolist()) for name in sites.values()]
    found = measured(model, unit_groups, removed, pictures, tested)
    agree(found, by_hooks(model, places, removed, pictures, tested))


class OtherWay(nn.Module):
    """A network that does something else while it is traced."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        x = self.inner(x)
        return 1.5 * x if isinstance(x, torch.Tensor) else x


def test_a_network_that_is_run_by_hooks(convnet, monkeypatch):
    """Where the trace is not the model, every set takes whole passes."""
    passes, after = [], HookedCut.after
    monkeypatch.setattr(HookedCut, "after", lambda *a: passes.append(1) or after(*a))
    model, pictures = OtherWay(convnet), [data(6, seed=n).tensors[0] for n in (2, 3)]
    found = measured(model, units_of_module(convnet[3]), sets_of(4, 2), pictures)
    assert passes
    places = [(convnet[5], range(4))]
    agree(found, by_hooks(model, places, sets_of(4, 2), pictures, data(11, seed=1)))


def test_without_batchnorm_it_is_what_the_metric_of_removals_says():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 3))
    model, removed = model.double().eval(), sets_of(5, 2)
    unit_groups, pictures = units_of_module(model[1]), [data(6, seed=2).tensors[0]]
    found = measured(model, unit_groups, removed, pictures)
    whole = measured(model, unit_groups, np.zeros((1, 5), dtype=bool), [])
    metric = RemovalMetric(model, loader(data(11, seed=1), 4), F.cross_entropy, "cpu", "none")
    expected = metric.run(model[1], True, removed=removed)
    np.testing.assert_allclose(found.losses - whole.losses, expected, rtol=1e-9, atol=1e-12)


def test_nothing_of_the_network_changes(convnet):
    before = {name: value.clone() for name, value in convnet.state_dict().items()}
    measured(convnet, units_of_module(convnet[0]), sets_of(5, 1), [data(6).tensors[0]])
    assert all(torch.equal(value, before[name]) for name, value in convnet.state_dict().items())
    assert [convnet[n].momentum for n in (1, 4, 8)] == [0.1] * 3
    assert not any(module.training for module in convnet.modules())


def test_pictures_are_those_of_a_recalibration(convnet):
    """No unit removed: the statistics are those that ``recalibrate`` makes of the whole network."""
    train, tested = data(20, seed=4), data(11, seed=1)
    pictures = calibration_pictures(train, 12, torch.Generator().manual_seed(5))
    assert [len(batch) for batch in pictures] == [12]
    none = np.zeros((1, 5), dtype=bool)
    found = measured(convnet, units_of_module(convnet[0]), none, pictures)
    recalibrate(convnet, train, 12, TASK, torch.Generator().manual_seed(5))
    with torch.no_grad():
        x, target = tested.tensors
        expected = F.cross_entropy(convnet(x), target, reduction="none")
    np.testing.assert_allclose(found.losses[:, 0], expected.numpy(), rtol=1e-9)


def test_batches_of_pictures_are_of_equal_size():
    train = TensorDataset(torch.zeros(600, 1), torch.zeros(600, dtype=torch.long))
    stream = torch.Generator().manual_seed(0)
    assert [len(x) for x in calibration_pictures(train, 600, stream)] == [200] * 3
    assert [len(x) for x in calibration_pictures(train, 1, stream)] == [2]
    assert calibration_pictures(train, 0, stream) == []


class Shared(nn.Module):
    """One BatchNorm in two places."""

    def __init__(self):
        super().__init__()
        self.one, self.two = (nn.Conv2d(n, 4, 3, padding=1) for n in (1, 4))
        self.norm, self.fc = nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x):
        x = self.norm(self.one(x)).relu()
        return self.fc(self.norm(self.two(x)).relu().mean((2, 3)))


def test_a_batchnorm_before_and_after_the_units_is_refused():
    model = Shared().double().eval()
    with pytest.raises(UserError, match=r"both before and after .* truth\.recalibrate=0"):
        measured(model, units_of_module(model.one), sets_of(4, 1), [data(6).tensors[0]])
