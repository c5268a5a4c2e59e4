"""One small network of each of torchvision's families: sliced equals masked, twice in a row."""

import pytest
import torchvision.models as zoo
from torch import nn
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.efficientnet import FusedMBConvConfig, MBConvConfig
from torchvision.models.inception import InceptionA, InceptionB, InceptionE
from torchvision.models.regnet import BlockParams
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2
from torchvision.models.vgg import make_layers
from torchvision.models.video import resnet as video_resnet
from torchvision.models.video.mvit import MSBlockConfig, MViT
from torchvision.ops import StochasticDepth

from pruning_lab.profiling.flops import count_flops
from tests.coupling.checks import predicted_flops, prunable_share, prune_and_compare
from tests.oracles.twin import randomise_all


def vgg():
    model = zoo.VGG(make_layers([8, "M", 12, 12, "M"], batch_norm=True), num_classes=5)
    model.avgpool = nn.AdaptiveAvgPool2d(2)
    model.classifier = nn.Sequential(
        nn.Linear(48, 16), nn.ReLU(True), nn.Dropout(), nn.Linear(16, 5)
    )
    return model


def inception():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), InceptionA(8, pool_features=6), InceptionB(230), InceptionE(710),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 5),
    )  # fmt: skip


def deeplab():
    return nn.Sequential(nn.Conv2d(3, 16, 3, 2), nn.ReLU(), DeepLabHead(16, 5, (2, 3, 4)))


def efficientnet():
    blocks = [MBConvConfig(1, 3, 1, 8, 8, 1), MBConvConfig(4, 5, 2, 8, 12, 2)]
    return zoo.EfficientNet([FusedMBConvConfig(4, 3, 1, 8, 8, 1), *blocks], 0.0, last_channel=32)


def regnet(**squeeze):
    blocks = BlockParams.from_init_params(
        depth=4, w_0=16, w_a=8.0, w_m=2.0, group_width=8, **squeeze
    )
    return zoo.RegNet(blocks, num_classes=5, stem_width=8)


def swin(**second_version):
    return zoo.SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=5, **second_version)


def maxvit():
    return zoo.MaxVit((32, 32), 8, 2, [8, 16], [1, 1], 4, 0.0, num_classes=5)


def mvit():
    blocks = [
        MSBlockConfig(1, 8, 16, [3, 3, 3], [3, 3, 3], [1, 1, 1], [1, 2, 2]),
        MSBlockConfig(2, 16, 16, [3, 3, 3], [3, 3, 3], [1, 2, 2], [1, 1, 1]),
    ]
    return MViT((16, 16), 4, blocks, residual_pool=False, residual_with_cls_embed=False,
                rel_pos_embed=False, proj_after_attn=False, num_classes=5)  # fmt: skip


def video():
    stem, block = video_resnet.BasicStem, video_resnet.BasicBlock
    convolutions = [video_resnet.Conv2Plus1D, *[video_resnet.Conv3DSimple] * 3]
    return video_resnet.VideoResNet(block, convolutions, [1, 1, 1, 1], stem, num_classes=5)


IMAGE, CLIP = (3, 32, 32), (3, 4, 16, 16)
FAMILIES = {
    "alexnet-like": (lambda: zoo.squeezenet1_1(num_classes=5), IMAGE),
    "vgg": (vgg, IMAGE),
    "resnet": (lambda: zoo.ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5), IMAGE),
    "resnext": (
        lambda: zoo.ResNet(Bottleneck, [1, 1, 1, 1], num_classes=5, groups=4, width_per_group=8),
        IMAGE,
    ),
    "densenet": (lambda: zoo.DenseNet(6, (2, 2), 8, num_classes=5), IMAGE),
    "googlenet": (lambda: zoo.GoogLeNet(5, init_weights=False), (3, 96, 96)),
    "inception": (inception, (3, 15, 15)),
    "shufflenet": (
        lambda: zoo.ShuffleNetV2([2, 2, 2], [8, 16, 32, 64, 64], num_classes=5), IMAGE,
    ),
    "mobilenet_v2": (lambda: zoo.MobileNetV2(5, width_mult=0.25), IMAGE),
    "mobilenet_v3": (lambda: zoo.mobilenet_v3_small(num_classes=5), IMAGE),
    "mnasnet": (lambda: zoo.MNASNet(0.25, 5), IMAGE),
    "efficientnet": (efficientnet, IMAGE),
    "regnet_x": (regnet, IMAGE),
    "regnet_y": (lambda: regnet(se_ratio=0.25), IMAGE),
    "convnext": (
        lambda: zoo.ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], num_classes=5),
        IMAGE,
    ),
    "vit": (lambda: zoo.VisionTransformer(16, 8, 2, 2, 16, 128, num_classes=5), (3, 16, 16)),
    "swin": (swin, IMAGE),
    "swin_v2": (
        lambda: swin(block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2), IMAGE,
    ),
    "maxvit": (maxvit, IMAGE),
    "lraspp": (
        lambda: zoo.segmentation.lraspp_mobilenet_v3_large(weights_backbone=None, num_classes=5),
        (3, 48, 48),
    ),
    "deeplab": (deeplab, IMAGE),
    "video resnet": (video, CLIP),
    "mvit": (mvit, CLIP),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_sliced_equals_masked(family):
    build, size = FAMILIES[family]
    model = randomise_all(build().double()).eval()
    for module in model.modules():
        if isinstance(module, nn.Dropout | StochasticDepth):
            module.p = 0.0
    flops = count_flops(model, size)
    original = build()
    for seed in (0, 1):
        outcome = prune_and_compare(model, size, seed=seed)
        assert outcome.error < 1e-9
        assert outcome.step_error < 1e-9
        assert outcome.effect > 1e-3
        model = outcome.pruner.model
        if seed == 0:
            assert prunable_share(original, outcome.structure) > 0.5
            left = count_flops(model, size)
            predicted = predicted_flops(original, size, outcome.structure, outcome.classes)
            assert left == pytest.approx(predicted, abs=0.5)
            assert left < flops
