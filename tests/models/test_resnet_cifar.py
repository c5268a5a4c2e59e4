"""The residual networks of He et al. for CIFAR, but for the shortcuts that change the shape."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pruning_lab.errors import UserError
from pruning_lab.models.resnet_cifar import Block, ResNet

DEPTHS = [20, 32, 44, 56, 110]
PUBLISHED = {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018, 110: 1_727_962}
"""With shortcuts that have no parameters (option A)."""
SHORTCUTS = (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64)
"""The two 1x1 convolutions with their BatchNorm (option B)."""


@pytest.mark.parametrize("depth", DEPTHS)
def test_the_parameters_are_the_papers_and_those_of_two_shortcuts(depth):
    n = (depth - 2) // 6
    blocks = [2 * (9 * width * width + 2 * width) for width in (16, 32, 64)]
    stem = 9 * 3 * 16 + 2 * 16
    narrower = 9 * (32 - 16) * 32 + 9 * (64 - 32) * 64  # the first of stages two and three
    by_hand = stem + n * sum(blocks) - narrower + 64 * 10 + 10 + SHORTCUTS
    with torch.device("meta"):
        found = sum(p.numel() for p in ResNet(depth).parameters())
    assert found == by_hand == PUBLISHED[depth] + SHORTCUTS


@pytest.mark.parametrize("depth", [8, *DEPTHS])
def test_its_depth_counts_the_layers_with_weights_outside_the_shortcuts(depth):
    with torch.device("meta"):
        model = ResNet(depth)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    shortcuts = [m for m in layers if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    assert len(layers) - len(shortcuts) == depth
    assert [(m.in_channels, m.out_channels, m.stride) for m in shortcuts] == [
        (16, 32, (2, 2)), (32, 64, (2, 2)),
    ]  # fmt: skip


def test_the_stages_halve_the_image_and_double_the_channels():
    model, shapes = ResNet(20, in_channels=1).eval(), []
    for block in model.blocks:
        block.register_forward_hook(lambda _module, _args, output: shapes.append(output.shape[1:]))
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 10)
    assert shapes == [(16, 32, 32)] * 3 + [(32, 16, 16)] * 3 + [(64, 8, 8)] * 3


def test_the_output_by_hand():
    torch.manual_seed(0)
    model = ResNet(8, 5, 2).eval()
    model.norm.running_mean.normal_()
    x = torch.randn(3, 2, 8, 8)
    inside = F.conv2d(x, model.conv.weight, padding=1) - model.norm.running_mean[:, None, None]
    inside = F.relu(inside / math.sqrt(1 + model.norm.eps))
    for block in model.blocks:
        inside = block(inside)
    expected = inside.mean((2, 3)) @ model.fc.weight.T + model.fc.bias
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize(("classes", "size"), [(10, (3, 32, 32)), (7, (1, 28, 33)), (2, (2, 1, 1))])
def test_it_takes_any_image(classes, size):
    with torch.device("meta"):
        model = ResNet(8, classes, size[0])
        assert model.train()(torch.zeros(2, *size)).shape == (2, classes)
        assert model.eval()(torch.zeros(2, *size)).shape == (2, classes)


def test_a_shortcut_that_selects_channels_is_the_papers():
    torch.manual_seed(0)
    block = Block(3, 8, stride=2).double().eval()
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-15
    with torch.no_grad():
        block.shortcut[0].weight.copy_(torch.eye(8, 3)[:, :, None, None])
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    inside = F.relu(F.conv2d(x, block.conv1.weight, stride=2, padding=1))
    inside = F.conv2d(inside, block.conv2.weight, padding=1)
    padded = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, 5))  # option A: channels of zeros
    torch.testing.assert_close(block(x), F.relu(inside + padded), rtol=0, atol=1e-12)


def test_a_block_that_keeps_the_shape_adds_its_input():
    block = Block(4, 4).eval()
    nn.init.zeros_(block.norm2.weight)
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(block(x), x.relu())
    assert not list(block.shortcut.parameters())


def test_the_weights_start_as_he_et_al_say():
    torch.manual_seed(0)
    model = ResNet(20, num_classes=100)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            weight = module.weight.detach()
            expected = math.sqrt(2 / weight[0].numel())  # by the inputs of one unit
            error = expected / math.sqrt(2 * weight.numel())  # standard error of a deviation
            assert abs(weight.std().item() - expected) < 5 * error
    assert not model.fc.bias.any()


@pytest.mark.parametrize("depth", [18, 21, 2, 0, -4, 20.0, "20", None])
def test_an_impossible_depth_is_refused(depth):
    with pytest.raises(
        UserError, match=rf"depth={depth} is not possible; it is 6n \+ 2, .* 20, 32"
    ):
        ResNet(depth)
