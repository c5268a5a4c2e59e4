"""The fully connected network of Ancona et al. (2020)."""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from pruning_lab.errors import check_counts


class MLP(nn.Sequential):
    """input - hidden - ... - classes with LeakyReLU; 2024-2024 in Ancona et al. (2020)."""

    def __init__(
        self,
        num_classes: int = 10,
        input_size: tuple[int, ...] = (1, 28, 28),
        hidden: Sequence[int] = (2024, 2024),
    ) -> None:
        check_counts("hidden", hidden, [2024, 2024])
        widths = [math.prod(input_size), *hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.LeakyReLU()]
        super().__init__(*layers, nn.Linear(widths[-1], num_classes))
