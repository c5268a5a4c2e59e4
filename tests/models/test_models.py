"""The networks are the ones they are named after."""

import itertools

import pytest
import torch
import torchvision
from hydra import compose, initialize_config_module
from torch import nn

from pruning_lab.datasets.splits import Splits
from pruning_lab.errors import UserError
from pruning_lab.models.convnet import ConvNet
from pruning_lab.models.mlp import MLP
from pruning_lab.models.torchvision_classifier import classifier
from pruning_lab.models.vgg import VGG
from pruning_lab.setup import build_model


def kinds(model):
    return [(type(m), getattr(m, "out_channels", None)) for m in model.features]


@pytest.mark.parametrize("depth", [11, 16, 19])
def test_vgg_is_torchvisions_features_with_the_papers_classifier(depth):
    model = VGG(depth)
    theirs = torchvision.models.get_model(f"vgg{depth}_bn")
    assert kinds(model) == kinds(theirs)
    linear = [m for m in model.classifier if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [(512, 512), (512, 512), (512, 10)]


def test_vgg16_has_the_parameters_that_a_hand_count_gives():
    widths = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    convolutions = sum(9 * a * b + b + 2 * b for a, b in itertools.pairwise(widths))
    classifier_ = 2 * (512 * 512 + 512) + 512 * 10 + 10
    assert sum(p.numel() for p in VGG(16).parameters()) == convolutions + classifier_


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 12}, "depth=12 is not known; VGG has 11, 13, 16, 19"),
        ({"depth": 16, "input_size": (1, 28, 28)}, r"at least 32x32 pixels.*28x28.*dataset.size"),
    ],
)
def test_vgg_refuses(arguments, message):
    with pytest.raises(UserError, match=message):
        VGG(**arguments)


def test_the_mlp_of_the_paper():
    model = MLP(10, (1, 28, 28))
    assert [type(m) for m in model] == [
        nn.Flatten, nn.Linear, nn.LeakyReLU, nn.Linear, nn.LeakyReLU, nn.Linear,
    ]  # fmt: skip
    linear = [m for m in model if isinstance(m, nn.Linear)]
    assert [m.in_features for m in linear] == [784, 2024, 2024]
    assert linear[-1].out_features == 10


def test_the_convnet_of_the_paper():
    model = ConvNet()
    convolutions = [m for m in model if isinstance(m, nn.Conv2d)]
    assert [(m.out_channels, m.kernel_size) for m in convolutions] == [(32, (5, 5)), (64, (3, 3))]
    assert [m.out_features for m in model if isinstance(m, nn.Linear)] == [4096, 10]
    with pytest.raises(UserError, match="1x8 pixels are too small"):
        ConvNet(input_size=(1, 1, 8))


@pytest.mark.parametrize("size", [(1, 28, 28), (3, 33, 41), (2, 8, 8)])
def test_the_convnet_takes_any_image(size):
    model = ConvNet(7, size[0], size).eval()
    assert model(torch.zeros(2, *size)).shape == (2, 7)


def test_a_torchvision_classifier_adapts_head_and_first_convolution():
    torch.manual_seed(0)
    model = classifier("resnet18", num_classes=7, in_channels=1)
    theirs = torchvision.models.resnet18().conv1
    assert model.fc.out_features == 7
    assert model.conv1.weight.shape == (64, 1, 7, 7)
    assert (model.conv1.stride, model.conv1.padding) == (theirs.stride, theirs.padding)
    assert model.conv1.bias is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet19"}, r"model.name=resnet19 is not one of .*Close: resnet1"),
        ({"name": "resnet18", "weights": "BEST"}, "choose one of IMAGENET1K_V1, DEFAULT"),
        (
            {"name": "resnet18", "weights": "DEFAULT", "num_classes": 10},
            r"knows 1000 classes .* has 10 classes and 3 channels",
        ),
    ],
)
def test_a_torchvision_classifier_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        classifier(**arguments)


def test_weights_that_cannot_be_downloaded_are_explained(monkeypatch, tmp_path):
    def offline(*_args, **_kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(UserError, match=r"cannot be downloaded \(no network\)\. Put resnet18-"):
        classifier("resnet18", "DEFAULT")


@pytest.mark.parametrize("name", ["vgg11", "vgg16", "vgg19", "mlp", "convnet", "torchvision"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_config_builds_for_the_data_set(name, channels):
    overrides = [f"model={name}"] + (["model.name=resnet18"] if name == "torchvision" else [])
    with initialize_config_module("pruning_lab.conf", version_base="1.3"):
        config = compose("config", overrides).model
    splits = Splits(None, None, None, None, num_classes=6, input_size=(channels, 32, 32))
    model = build_model(config, splits).eval()
    assert model(torch.zeros(2, channels, 32, 32)).shape == (2, 6)
