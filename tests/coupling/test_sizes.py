"""Attributes of modules keep up with their tensors, in whatever way the forward uses these."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pruning_lab.coupling.structure import find_structure
from pruning_lab.coupling.widths import SIZES
from pruning_lab.pruner import Pruner
from tests.coupling.checks import prune_and_compare
from tests.oracles.twin import randomise_all


def own(base, forward):
    """A subclass of a layer with a forward of its own."""
    return type(f"Own{base.__name__}", (base,), {"forward": forward})


def along_channels(tensor):
    return tensor.view(1, -1, 1, 1)


def normalised(m, x):
    scale = m.weight / (m.running_var + m.eps).sqrt()
    return (x - along_channels(m.running_mean)) * along_channels(scale) + along_channels(m.bias)


def standardised(m, x):
    weight = m.weight / (1 + m.weight.square().mean((2, 3), keepdim=True))
    return F.conv2d(x, weight, m.bias)


BATCH_NORM = own(
    nn.BatchNorm2d,
    lambda m, x: F.relu(
        F.batch_norm(x, m.running_mean, m.running_var, m.weight, m.bias, m.training, m.momentum)
    ),
)
INSTANCE_NORM = own(nn.InstanceNorm2d, lambda m, x: F.instance_norm(x, weight=m.weight))
CHANNELS_LAST = own(
    nn.LayerNorm,
    lambda m, x: F.layer_norm(
        x.permute(0, 2, 3, 1), m.normalized_shape, m.weight, m.bias, m.eps
    ).permute(0, 3, 1, 2),
)
SCALED = own(nn.LayerNorm, lambda m, x: x * along_channels(m.weight) + along_channels(m.bias))

FAMILIES = {
    "BatchNorm": lambda: nn.BatchNorm2d(6),
    "BatchNorm and an activation": lambda: BATCH_NORM(6),
    "BatchNorm without statistics": lambda: nn.BatchNorm2d(6, affine=False),
    "BatchNorm by hand": lambda: own(nn.BatchNorm2d, normalised)(6),
    "InstanceNorm": lambda: nn.InstanceNorm2d(6, affine=True),
    "InstanceNorm without weights": lambda: INSTANCE_NORM(6),
    "GroupNorm": lambda: nn.GroupNorm(3, 6),
    "GroupNorm of one group": lambda: own(
        nn.GroupNorm, lambda m, x: F.group_norm(x, m.num_groups, m.weight, m.bias).relu()
    )(1, 6),
    "LayerNorm over channels": lambda: CHANNELS_LAST(6),
    "LayerNorm as a scale": lambda: SCALED(6),
    "PReLU": lambda: nn.PReLU(6),
    "PReLU by hand": lambda: own(
        nn.PReLU, lambda m, x: F.relu(x) - along_channels(m.weight) * F.relu(-x)
    )(6),
    "a convolution": lambda: nn.Conv2d(6, 4, 1),
    "a standardised convolution": lambda: own(nn.Conv2d, standardised)(6, 4, 1),
    "a depthwise convolution": lambda: own(nn.Conv2d, lambda m, x: F.relu(nn.Conv2d.forward(m, x)))(
        6, 6, 1, groups=6
    ),
    "a transposed convolution": lambda: nn.ConvTranspose2d(6, 4, 1),
    "a Linear": lambda: own(
        nn.Linear, lambda m, x: (x.transpose(1, 3) @ m.weight.t() + m.bias).transpose(1, 3)
    )(6, 6),
}


def stale(model):
    """Attributes that are not the size of the tensors of their module."""
    found = []
    for name, module in model.named_modules():
        kind = next((kind for kind in SIZES if isinstance(module, kind)), None)
        for attribute, tensor, dim in SIZES[kind] if kind else ():
            value = getattr(module, attribute)
            shape = value if isinstance(value, tuple) else (value,)
            weight = getattr(module, tensor, None)
            if weight is not None:
                groups = getattr(module, "groups", 1) if dim == 1 else 1
                sizes = tuple(weight.shape[dim : dim + len(shape)])
                if shape != (sizes[0] * groups, *sizes[1:]):
                    found.append((name, attribute, value, sizes))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_widths_follow_a_cut_in_every_family(family):
    between = FAMILIES[family]()
    width = getattr(between, "out_channels", 6)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 1), between, nn.ReLU(), nn.Conv2d(width, 3, 1), nn.Conv2d(3, 2, 1)
    ).double()  # fmt: skip
    outcome = prune_and_compare(randomise_all(model), (2, 4, 4))
    sliced = outcome.pruner.model
    assert "0" in outcome.structure.groups
    assert stale(sliced) == []
    if hasattr(between, "num_features"):
        assert sliced[1].num_features == sliced[0].out_channels < 6
    assert outcome.effect > 1e-3
    assert outcome.error < 1e-10


def test_a_width_that_such_a_forward_calculates_with_stays():
    counted = own(nn.BatchNorm2d, lambda m, x: normalised(m, x) / m.num_features)(6)
    structure = find_structure(
        nn.Sequential(nn.Conv2d(2, 6, 1), counted, nn.Conv2d(6, 1, 1)), (2, 4, 4)
    )
    assert structure.frozen["0"] == "the code calculates with 1.num_features"


def test_an_embedding_and_a_layer_that_others_use_follow_too():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.used, self.head = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 1)

        def forward(self, x):
            return self.head(F.linear(self.stem(x), self.used.weight, self.used.bias))

    model = Tied()
    Pruner(model, (4,), "cpu").prune_model(model.stem, [1, 2])
    assert (model.used.in_features, model.used.out_features) == (4, 5)
    assert stale(model) == []


def positions(pool):
    """A learned position embedding that is pooled, padded or resized with the image."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 6, 4, 4), nn.Linear(6, 4)
            self.position, self.pool = nn.Parameter(torch.randn(1, 6, 2, 2)), pool

        def forward(self, x):
            return self.head(self.pool(F.relu(self.stem(x) + self.position)).mean((2, 3)))

    return randomise_all(Net().double())


@pytest.mark.parametrize(
    "pool",
    [
        nn.AdaptiveAvgPool2d(1), nn.MaxPool2d(2), nn.ZeroPad2d(1), nn.Upsample(scale_factor=2),
        lambda x: F.avg_pool2d(x, 2), lambda x: F.pad(x, (0, 1)),
        lambda x: F.interpolate(x, scale_factor=2),
        lambda x: torch.cat([x, x[:, :0]], 1), lambda x: torch.cat([x, x.new_zeros(0)], 1),
        lambda x: torch.cat([x[:, :0], x], 1), lambda x: torch.cat([x, x[:, :, :0]], 2),
    ],
)  # fmt: skip
def test_positions_change_their_number_and_parts_may_be_empty(pool):
    model = positions(pool)
    assert find_structure(model, (3, 8, 8)).groups.keys() <= {"stem"}
    if find_structure(model, (3, 8, 8)).groups:
        outcome = prune_and_compare(model, (3, 8, 8))
        assert outcome.effect > 1e-3
        assert max(outcome.error, outcome.step_error) < 1e-10


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_cut_keeps_the_memory_format(layout, kernel):
    model = nn.Sequential(nn.Conv2d(1, 8, kernel), nn.Conv2d(8, 6, kernel), nn.Conv2d(6, 2, 1))
    model = model.to(memory_format=layout)
    model(torch.randn(2, 1, 8, 8)).sum().backward()
    Pruner(model, (1, 8, 8), "cpu").prune_groups({"0": [1, 5], "1": [0]})
    for layer in model:
        like = torch.empty(layer.weight.shape).to(memory_format=layout)
        assert layer.weight.stride() == like.stride()
        assert layer.weight.grad.shape == like.shape


def test_a_transposed_weight_stays_so():
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))
    model[1].weight.data = model[1].weight.data.t().contiguous().t()
    Pruner(model, (4,), "cpu").prune_model(model[0], [2])
    assert model[1].weight.stride() == (1, 3)
