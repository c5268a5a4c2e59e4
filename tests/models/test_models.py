"""The networks are the ones they are named after."""

import itertools
from pathlib import Path

import pytest
import torch
import torchvision
from hydra import compose, initialize_config_module
from torch import nn

from pruning_lab.datasets.splits import Splits
from pruning_lab.errors import UserError
from pruning_lab.experiment.parts import build_model
from pruning_lab.models import resnet_cifar
from pruning_lab.models.convnet import ConvNet
from pruning_lab.models.mlp import MLP
from pruning_lab.models.torchvision_classifier import classifier
from pruning_lab.models.vgg import VGG
from pruning_lab.tasks import Classification


@pytest.mark.parametrize("depth", [11, 13, 16, 19])
def test_vgg_is_torchvisions_features_with_the_papers_classifier(depth):
    with torch.device("meta"):
        model = VGG(depth)
        theirs = torchvision.models.get_model(f"vgg{depth}_bn")
    assert list(map(repr, model.features)) == list(map(repr, theirs.features))  # kinds and widths
    linear = [m for m in model.classifier if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [(512, 512), (512, 512), (512, 10)]


WIDTHS = {  # 3x3 convolutions before each pooling
    11: [[64], [128], [256] * 2, [512] * 2, [512] * 2],
    16: [[64] * 2, [128] * 2, [256] * 3, [512] * 3, [512] * 3],
    19: [[64] * 2, [128] * 2, [256] * 4, [512] * 4, [512] * 4],
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("depth", WIDTHS)
def test_vgg_has_the_parameters_that_a_hand_count_gives(depth, channels):
    with torch.device("meta"):
        model = VGG(depth, 10, channels, (channels, 32, 32))
    widths = [channels, *itertools.chain.from_iterable(WIDTHS[depth])]
    convolutions = sum(9 * a * b + b + 2 * b for a, b in itertools.pairwise(widths))
    classifier_ = 2 * (512 * 512 + 512) + 512 * 10 + 10
    assert sum(p.numel() for p in model.parameters()) == convolutions + classifier_
    found = [len(list(group)) for pool, group in itertools.groupby(
        [m for m in model.features if isinstance(m, nn.Conv2d | nn.MaxPool2d)],
        lambda m: isinstance(m, nn.MaxPool2d),
    ) if not pool]  # fmt: skip
    assert found == [len(group) for group in WIDTHS[depth]]


def test_vgg_averages_what_is_left_of_a_larger_image():
    torch.manual_seed(0)
    model = VGG(11, 4, 1, (1, 64, 96), hidden=8).eval()
    x = torch.randn(2, 1, 64, 96)
    with torch.no_grad():
        features = model.features(x)
        assert features.shape == (2, 512, 2, 3)
        expected = model.classifier(features.sum((2, 3)) / 6)
        torch.testing.assert_close(model(x), expected)
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.5, 0.5]


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
    with torch.device("meta"):
        model = MLP(10, (1, 28, 28))
    assert [type(m) for m in model] == [
        nn.Flatten, nn.Linear, nn.LeakyReLU, nn.Linear, nn.LeakyReLU, nn.Linear,
    ]  # fmt: skip
    linear = [m for m in model if isinstance(m, nn.Linear)]
    assert [m.in_features for m in linear] == [784, 2024, 2024]
    assert linear[-1].out_features == 10
    expected = 784 * 2024 + 2024 + 2024 * 2024 + 2024 + 2024 * 10 + 10
    assert sum(p.numel() for p in model.parameters()) == expected


def test_the_mlps_output_by_hand():
    torch.manual_seed(0)
    model = MLP(3, (2, 4, 5), [6])
    x = torch.randn(7, 2, 4, 5)
    hidden = x.reshape(7, 40) @ model[1].weight.T + model[1].bias
    hidden = torch.where(hidden > 0, hidden, 0.01 * hidden)
    torch.testing.assert_close(model(x), hidden @ model[3].weight.T + model[3].bias)


def test_the_convnet_of_the_paper():
    with torch.device("meta"):
        model = ConvNet()
    block = [nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d]
    assert [type(m) for m in model] == [
        nn.Conv2d, *block, nn.Conv2d, *block, nn.Flatten,
        nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear,
    ]  # fmt: skip
    counts = [
        32 * 25 + 32, 2 * 32, 64 * 32 * 9 + 64, 2 * 64,
        4096 * 64 * 8 * 8 + 4096, 2 * 4096, 10 * 4096 + 10,  # 28 -> 14 -> 14 + 2 -> 8
    ]  # fmt: skip
    assert sum(p.numel() for p in model.parameters()) == sum(counts)
    convolutions = [m for m in model if isinstance(m, nn.Conv2d)]
    assert [(m.out_channels, m.kernel_size) for m in convolutions] == [(32, (5, 5)), (64, (3, 3))]
    assert [m.out_features for m in model if isinstance(m, nn.Linear)] == [4096, 10]
    with pytest.raises(UserError, match="1x8 pixels are too small"):
        ConvNet(input_size=(1, 1, 8))


@pytest.mark.parametrize("size", [(1, 28, 28), (3, 33, 41), (2, 8, 8)])
def test_the_convnet_takes_any_image(size):
    with torch.device("meta"):
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
    ("name", "first"),
    [
        ("vgg11", "features.0"), ("mobilenet_v2", "features.0.0"), ("squeezenet1_1", "features.0"),
        ("densenet121", "features.conv0"), ("googlenet", "conv1.conv"), ("vit_b_16", "conv_proj"),
    ],
)  # fmt: skip
def test_only_the_inputs_of_the_first_convolution_change(name, first):
    extra = (
        {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    )  # else it warns
    with torch.device("meta"):
        model = classifier(name, num_classes=10, in_channels=2).eval()
        theirs = torchvision.models.get_model(name, num_classes=10, **extra)
        assert model(torch.zeros(2, 2, 224, 224)).shape == (2, 10)
    shapes = {key: value.shape for key, value in theirs.state_dict().items()}
    out, _, *kernel = shapes[f"{first}.weight"]
    assert {key: value.shape for key, value in model.state_dict().items()} == shapes | {
        f"{first}.weight": (out, 2, *kernel)
    }
    was, now = theirs.get_submodule(first), model.get_submodule(first)
    assert (now.stride, now.padding, now.groups) == (was.stride, was.padding, was.groups)


def test_with_three_channels_torchvisions_network_is_untouched():
    torch.manual_seed(0)
    mine = classifier("squeezenet1_1", num_classes=10).state_dict()
    torch.manual_seed(0)
    theirs = torchvision.models.squeezenet1_1(num_classes=10).state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet19"}, r"model.name=resnet19 is not one of .*Close: resnet1"),
        ({"name": "vgg61"}, r"model.name=vgg61 .*Close: .*vgg16"),
        ({"name": "?"}, r"model.name=\? .*Close: alexnet, "),
        (
            {"name": "resnet18", "weights": "DEFAULT", "in_channels": 1},
            "has 1000 classes and 1 channels.*model.weights=null",
        ),
        ({"name": "resnet18", "weights": "BEST"}, "choose one of IMAGENET1K_V1, DEFAULT"),
        (
            {"name": "resnet18", "weights": "DEFAULT", "num_classes": 10},
            r"knows 1000 classes .* has 10 classes and 3 channels",
        ),
        (
            {"name": "densenet121", "input_size": (3, 28, 28)},
            r"densenet121 does not take images of 28x28 .*those of 29x29.*dataset.size=29",
        ),
        (
            {"name": "maxvit_t", "input_size": (3, 32, 32)},
            r"does not take images of 32x32 pixels, but those of 224x224",
        ),
        (
            {"name": "vit_b_16", "input_size": (3, 28, 28)},
            r"patches of 16x16 pixels, these have 28x28.* multiple of 16 \(dataset.size=32,",
        ),
        (
            {"name": "vit_b_32", "input_size": (3, 32, 65)},
            r"square images.* these have 32x65.* multiple of 32 \(dataset.size=96,",
        ),
        (
            {"name": "vit_b_16", "input_size": (3, 32, 32), "weights": "IMAGENET1K_V1"},
            r"ViT_B_16_Weights.IMAGENET1K_V1 does not take images of 32x32 .*those of 224x224",
        ),
        (
            {
                "name": "vit_b_16",
                "input_size": (3, 224, 224),
                "weights": "IMAGENET1K_SWAG_E2E_V1",
            },
            r"does not take images of 224x224 .*dataset.size=384",
        ),
    ],
)
def test_a_torchvision_classifier_is_refused(arguments, message):
    with pytest.raises(UserError, match=message), torch.device("meta"):
        classifier(**arguments)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("vit_b_16", "IMAGENET1K_V1"), ("vit_b_16", "IMAGENET1K_SWAG_E2E_V1"),
        ("squeezenet1_1", "IMAGENET1K_V1"),
    ],
)  # fmt: skip
def test_pretrained_weights_are_loaded_for_a_size_that_they_take(name, weights, monkeypatch):
    chosen = torchvision.models.get_model_weights(name)[weights]
    size = chosen.meta["min_size"]
    with torch.device("meta"):
        extra = {"image_size": size[0]} if name == "vit_b_16" else {}
        stored = torchvision.models.get_model(name, **extra).state_dict()
    monkeypatch.setattr(type(chosen), "get_state_dict", lambda *_, **__: stored)
    with torch.device("meta"):
        for input_size in (None, (3, *size)):
            model = classifier(name, weights, input_size=input_size)
            assert {k: v.shape for k, v in model.state_dict().items()} == {
                k: v.shape for k, v in stored.items()
            }
        if name == "squeezenet1_1":
            with pytest.raises(UserError, match=r"of 16x16 pixels, but those of 17x17"):
                classifier(name, weights, input_size=(3, 16, 16))


@pytest.mark.parametrize(
    "name", [name for name in torchvision.models.list_models() if name.startswith("vit_")]
)
def test_a_vision_transformer_is_built_for_the_size_of_the_images(name):
    with torch.device("meta"):
        patch = torchvision.models.get_model(name).patch_size
        model = classifier(name, None, 10, 1, (1, 3 * patch, 3 * patch))
        assert model.encoder.pos_embedding.shape[1] == 3 * 3 + 1
        assert model(torch.zeros(2, 1, 3 * patch, 3 * patch)).shape == (2, 10)
        assert classifier(name).image_size == 224  # as torchvision's own


def test_checking_the_size_leaves_model_and_random_numbers_alone():
    torch.manual_seed(0)
    mine = classifier("shufflenet_v2_x0_5", num_classes=10, input_size=(3, 32, 32))
    after = torch.rand(1)
    torch.manual_seed(0)
    theirs = torchvision.models.shufflenet_v2_x0_5(num_classes=10)
    assert torch.equal(after, torch.rand(1))
    assert mine.training
    found, expected = mine.state_dict(), theirs.state_dict()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_weights_that_cannot_be_downloaded_are_explained(monkeypatch, tmp_path):
    def offline(*_args, **_kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(UserError, match=r"cannot be downloaded \(no network\)\. Put resnet18-"):
        classifier("resnet18", "DEFAULT")


def test_weights_in_torchs_hub_folder_are_read_as_the_advice_says(monkeypatch, tmp_path):
    stored = torchvision.models.squeezenet1_1()
    file = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url.rsplit("/", 1)[-1]
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_: pytest.fail("downloaded"))
    (tmp_path / "checkpoints").mkdir()
    torch.save(stored.state_dict(), tmp_path / "checkpoints" / file)
    for name in ("DEFAULT", "IMAGENET1K_V1"):
        loaded = classifier("squeezenet1_1", name).state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in stored.state_dict().items())


CONFIGS = {
    "vgg11": VGG, "vgg16": VGG, "vgg19": VGG, "mlp": MLP, "convnet": ConvNet,
    "resnet20": resnet_cifar.ResNet, "resnet56": resnet_cifar.ResNet,
    "torchvision": torchvision.models.ResNet,
    "resnet18": torchvision.models.ResNet, "resnet50": torchvision.models.ResNet,
    "densenet121": torchvision.models.DenseNet, "mobilenet_v2": torchvision.models.MobileNetV2,
    "mobilenet_v3": torchvision.models.MobileNetV3, "convnext_tiny": torchvision.models.ConvNeXt,
    "efficientnet_b0": torchvision.models.EfficientNet,
    "shufflenet": torchvision.models.ShuffleNetV2, "regnet": torchvision.models.RegNet,
    "vit_b_16": torchvision.models.VisionTransformer,
    "swin_t": torchvision.models.SwinTransformer,
}  # fmt: skip


OURS = [name for name, kind in CONFIGS.items() if kind.__module__.startswith("pruning_lab")]


@pytest.mark.parametrize(
    ("name", "channels"), [(name, 1) for name in CONFIGS] + [(name, 3) for name in OURS]
)
def test_every_config_builds_for_the_data_set(name, channels):
    with initialize_config_module("pruning_lab.conf", version_base="1.3"):
        config = compose("config", [f"model={name}"]).model
    splits = Splits(None, None, None, None, num_classes=6, input_size=(channels, 32, 32))
    device = "cpu" if name == "regnet" else "meta"  # RegNet computes its widths with tensors
    with torch.device(device):
        model = build_model(config, splits, Classification())  # tries it in eval mode
        assert type(model) is CONFIGS[name]
        with torch.no_grad():
            assert model.train()(torch.zeros(64, channels, 32, 32)).shape == (64, 6)


def test_every_config_is_built_above():
    found = {path.stem for path in (Path(__file__).parents[2] / "conf" / "model").glob("*.yaml")}
    assert found == {*CONFIGS, "custom"}


@pytest.mark.parametrize("name", ["densenet121", "convnext_tiny", "vit_b_16", "vgg16"])
def test_a_config_that_cannot_take_the_images_says_what_size_it_takes(name):
    with initialize_config_module("pruning_lab.conf", version_base="1.3"):
        config = compose("config", [f"model={name}"]).model
    splits = Splits(None, None, None, None, num_classes=6, input_size=(1, 28, 28))
    with (
        torch.device("meta"),
        pytest.raises(UserError, match=r"^model: .*28x28.*dataset.size="),
    ):
        build_model(config, splits, Classification())


def test_a_broken_download_of_weights_is_explained(monkeypatch, tmp_path):
    def broken(*_args, **_kwargs):
        raise RuntimeError('invalid hash value (expected "f37072fd", got "00")')

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", broken)
    with pytest.raises(UserError, match=r"cannot be downloaded .*invalid hash"):
        classifier("resnet18", "DEFAULT")
