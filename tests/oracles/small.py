"""Networks and a loss that several tests of criteria count on."""

import torch
import torch.nn.functional as F
from torch import nn


def mean_square(output, target, reduction):
    """The loss of networks that are followed on paper."""
    return F.mse_loss(output, target, reduction=reduction)


def difference():
    """y = 3 a - b with a = b = 1 and target 0."""
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.fill_(1)
        model[1].weight.copy_(torch.tensor([[3.0, -1.0]]))
    return model, [(torch.ones(1, 1), torch.zeros(1, 1))]


def smooth():
    """A network without kinks, six pictures and their classes."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 5, 3), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(5, 4, 2), nn.Softplus(),
        nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip
    x = torch.randn(6, 1, 8, 8, dtype=torch.float64)
    return model.double(), x, torch.tensor([0, 1, 2, 0, 1, 2])
