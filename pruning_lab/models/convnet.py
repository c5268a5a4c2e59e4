"""The network for Fashion-MNIST of Ancona et al. (2020)."""

from torch import nn

from pruning_lab.errors import UserError, check_count, check_counts


class ConvNet(nn.Sequential):
    """Two convolutions, a wide hidden layer, BatchNorm everywhere (Ancona et al., 2020).

    The original's BatchNorm used the statistics of the current batch; this one keeps running
    statistics, so that the output for one sample does not depend on the others.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        input_size: tuple[int, ...] = (1, 28, 28),
        channels: tuple[int, int] = (32, 64),
        hidden: int = 4096,
    ) -> None:
        check_counts("channels", channels, [32, 64])
        check_count("hidden", hidden)
        if len(channels) != 2:
            raise UserError(f"channels={channels} is not possible; there are two convolutions.")
        first, second = channels
        height, width = ((size // 2 + 2) // 2 for size in input_size[1:])
        if min(input_size[1:]) < 2:
            raise UserError(f"Images of {input_size[1]}x{input_size[2]} pixels are too small.")
        super().__init__(
            nn.Conv2d(in_channels, first, 5, padding=2),
            nn.BatchNorm2d(first),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(first, second, 3, padding=2),
            nn.BatchNorm2d(second),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(second * height * width, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, num_classes),
        )
