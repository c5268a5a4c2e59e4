"""Units lie where the layer that makes them has them, in whatever follows it; never by a guess."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pruning_lab.attributions import APoZAttributionMetric, WeightNormAttributionMetric
from pruning_lab.attributions.criteria.mean_activation import MeanActivationAttributionMetric
from pruning_lab.errors import UserError


class Conv1D(nn.Module):
    """A Linear whose weight is (inputs, units)."""

    def __init__(self, units, inputs):
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.randn(inputs, units)),
            nn.Parameter(torch.zeros(units)),
        )

    def forward(self, x):
        return x @ self.weight + self.bias


class Own(nn.Module):
    """A Linear of one's own, without bias."""

    def __init__(self, units, inputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(units, inputs))

    def forward(self, x):
        return F.linear(x, self.weight)


class Swish(nn.Module):
    def forward(self, x):
        return x * x.sigmoid()


class ChannelNorm(nn.LayerNorm):
    """Normalises the channels of maps (N, channels, height, width)."""

    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(5, 5)

    def forward(self, x):
        return x * self.fc(x.mean((2, 3))).sigmoid()[:, :, None, None]


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(5, 5, 3, padding=1), nn.BatchNorm2d(5)

    def forward(self, x):
        return F.relu(x + self.bn(self.conv(x)))


class ByToken(nn.Module):
    """Takes the tokens (N, tokens, units) as they are, or depends on the data."""

    def __init__(self, body, traced=True):
        super().__init__()
        self.body, self.head, self.traced = body, nn.LazyLinear(3), traced

    def forward(self, x):
        if not self.traced and x.sum() > 1e9:
            x = -x
        x = self.body(x)
        return self.head(x.flatten(2).mean(2) if x.ndim == 4 else x.mean(1))


def found(body, x, part, traced=True):
    torch.manual_seed(0)
    model = ByToken(body, traced)
    model(x)  # makes the head
    data = [(x, torch.arange(len(x)) % 3)]
    kinds = MeanActivationAttributionMetric, APoZAttributionMetric
    metrics = [kind(model.eval(), data, F.cross_entropy, "cpu", "none") for kind in kinds]
    return metrics[0].run(body[part]), [metric.run(body[part]).shape for metric in metrics]


TOKENS, MAPS = torch.randn(4, 9, 6), torch.randn(4, 2, 5, 5)


def conv(*more):
    return nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), *more)


@pytest.mark.parametrize("traced", [True, False])
@pytest.mark.parametrize(
    ("body", "x", "part", "units"),
    [
        (nn.Sequential(nn.Linear(6, 16), nn.GELU()), TOKENS, 1, 16),
        (nn.Sequential(nn.Linear(6, 9), nn.ReLU()), TOKENS, 1, 9),  # as many as tokens
        (nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.Dropout(), Swish()), TOKENS, 3, 16),
        (nn.Sequential(nn.Linear(6, 16), nn.GELU(), Conv1D(20, 16)), TOKENS, 2, 20),
        (nn.Sequential(nn.Linear(6, 16), Own(9, 16), nn.Tanh()), TOKENS, 1, 9),
        (nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16)), TOKENS, 1, 16),
        (conv(nn.ReLU(inplace=True)), MAPS, 1, 5),
        (conv(nn.BatchNorm2d(5), nn.Identity(), nn.PReLU(5)), MAPS, 3, 5),
        (conv(nn.ReLU(), nn.MaxPool2d(2)), MAPS, 2, 5),
        (conv(ChannelNorm(5), nn.Hardswish()), MAPS, 1, 5),
        (conv(nn.GroupNorm(1, 5)), MAPS, 1, 5),
        (conv(Gate()), MAPS, 1, 5),
        (conv(Residual()), MAPS, 1, 5),
        (conv(nn.Sequential(nn.Conv2d(5, 4, 1), nn.ReLU())), MAPS, 1, 4),
    ],
)
def test_scores_are_of_units(body, x, part, units, traced):
    scores, shapes = found(body, x, part, traced)
    assert shapes == [(4, units)] * 2
    with torch.no_grad():
        output = body[: part + 1](x)
    by_unit = output.abs().movedim(-1 if x is TOKENS else 1, 1).flatten(2).mean(2)
    torch.testing.assert_close(torch.from_numpy(scores), by_unit.double(), rtol=1e-4, atol=1e-6)


class Mixed(nn.Module):
    """Every place of what comes out depends on every one of what goes in."""

    def forward(self, x):
        return x * x.mean((1, 2), keepdim=True)


def test_what_cannot_be_told_is_refused():
    with pytest.raises(UserError, match=r"Cannot tell .* Mixed's output \(2, 9, 16\) holds the"):
        found(nn.Sequential(nn.Linear(6, 16), Mixed()), TOKENS, 1)


@pytest.mark.parametrize("module", [Conv1D(20, 6), Own(20, 6), nn.Embedding(20, 6)])
def test_weights_that_lie_nobody_knows_how_have_no_norm(module):
    metric = WeightNormAttributionMetric(nn.Sequential(module), [], F.cross_entropy, "cpu")
    with pytest.raises(UserError, match=r"Cannot tell .* weight \((6|20), (6|20)\) holds"):
        metric.run(module)


def test_units_of_an_embedding_are_its_dimensions():
    body = nn.Sequential(nn.Embedding(20, 6))
    assert found(body, torch.arange(36).view(4, 9) % 20, 0)[1] == [(4, 6)] * 2
