"""The residual networks for CIFAR of He et al. (2016)."""

import torch
from torch import nn

from pruning_lab.errors import UserError

WIDTHS = (16, 32, 64)
"""Channels of the three stages; the second and the third halve the image."""


class ResNet(nn.Module):
    """The network with 6n + 2 weight layers of He et al. (2016), section 4.2.

    A 3x3 convolution, three stages of n blocks, global average pooling, one linear layer. Weights
    are initialised as in the paper (He et al., 2015). Where a block changes the shape, the paper's
    shortcut on CIFAR takes every second pixel and appends channels of zeros (option A). Here it
    is a 1x1 convolution with BatchNorm (option B): channels of zeros could never be pruned.
    """

    def __init__(self, depth: int, num_classes: int = 10, in_channels: int = 3) -> None:
        if not isinstance(depth, int) or depth < 8 or depth % 6 != 2:
            raise UserError(
                f"depth={depth} is not possible; it is 6n + 2, in the paper 20, 32, 44, 56, 110."
            )
        super().__init__()
        self.conv = _conv3x3(in_channels, WIDTHS[0])
        self.norm = nn.BatchNorm2d(WIDTHS[0])
        self.relu = nn.ReLU()
        blocks: list[Block] = []
        inputs = WIDTHS[0]
        for width in WIDTHS:
            for _ in range((depth - 2) // 6):
                blocks.append(Block(inputs, width, stride=width // inputs))
                inputs = width
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(inputs, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.norm(self.conv(x)))
        return self.fc(self.flatten(self.pool(self.blocks(x))))


class Block(nn.Module):
    """Two 3x3 convolutions with BatchNorm, added to the shortcut before the last ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = _conv3x3(inputs, outputs, stride)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = _conv3x3(outputs, outputs)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if (inputs, stride) != (outputs, 1):
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
        self.relu2 = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inside = self.relu1(self.norm1(self.conv1(x)))
        return self.relu2(self.norm2(self.conv2(inside)) + self.shortcut(x))


def _conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
