"""VGG with BatchNorm and the small classifier of Ancona et al. (2020)."""

import torch
import torchvision
from torch import nn

from pruning_lab.errors import UserError, check_count

DEPTHS = (11, 13, 16, 19)
SMALLEST = 32
"""Smallest side of an image in pixels: five poolings halve it five times."""


class VGG(nn.Module):
    """torchvision's ``vgg{depth}_bn`` features, then 512-512-classes (Ancona et al., 2020).

    The classifier reads one value per channel: for images larger than 32 pixels, an average.
    """

    def __init__(
        self,
        depth: int,
        num_classes: int = 10,
        in_channels: int = 3,
        input_size: tuple[int, ...] = (3, SMALLEST, SMALLEST),
        hidden: int = 512,
        dropout: float = 0.5,
    ) -> None:
        if depth not in DEPTHS:
            raise UserError(f"depth={depth} is not known; VGG has {', '.join(map(str, DEPTHS))}.")
        check_count("hidden", hidden)
        if min(input_size[1:]) < SMALLEST:
            raise UserError(
                f"VGG needs images of at least {SMALLEST}x{SMALLEST} pixels, these have "
                f"{input_size[1]}x{input_size[2]}. Use dataset.size={SMALLEST} or a smaller model."
            )
        super().__init__()
        self.features = torchvision.models.get_model(f"vgg{depth}_bn", weights=None).features
        if in_channels != 3:
            self.features[0] = nn.Conv2d(in_channels, 64, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs in (512, hidden):
            layers += [nn.Linear(inputs, hidden), nn.ReLU(), nn.Dropout(dropout)]
        self.classifier = nn.Sequential(*layers, nn.Linear(hidden, num_classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.pool(self.features(x)))
