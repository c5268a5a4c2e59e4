"""What the first layer behind a site gives is the sum of what the units contribute."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pruning_lab.partial_forward.first_layer import ConvolutionEntry, LinearEntry
from pruning_lab.partial_forward.traced import trace


class Forward(nn.Module):
    """A first layer, and a forward pass around it given as a function."""

    def __init__(self, forward, **modules):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self._forward = forward

    def forward(self, x):
        return self._forward(self, x)


IMAGES, VECTORS = (3, 2, 8, 8), (3, 5)
CHAINS = {
    "convolution": (
        ConvolutionEntry,
        IMAGES,
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 5, 3, 2, 1, 2), nn.Flatten()),
    ),
    "norm, activation and pooling between": (
        ConvolutionEntry,
        IMAGES,
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3),
            nn.BatchNorm2d(4),
            nn.Sigmoid(),
            nn.MaxPool2d(2, 1, 1),
            nn.Conv2d(4, 5, 3, padding="same"),
            nn.BatchNorm2d(5),
            nn.ReLU(),
            nn.Flatten(),
        ),
    ),
    "a series": (
        ConvolutionEntry,
        (3, 2, 9),
        lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Conv1d(4, 3, 2), nn.Flatten()),
    ),
    "flattened": (
        LinearEntry,
        IMAGES,
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3),
            nn.Tanh(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(),
            nn.Linear(36, 5),
            nn.ReLU(),
            nn.Linear(5, 2),
        ),
    ),
    "flattened by a function": (
        LinearEntry,
        IMAGES,
        lambda: Forward(
            lambda m, x: m.fc(torch.flatten(F.max_pool2d(F.relu(m.first(x)), 3), 1)),
            first=nn.Conv2d(2, 4, 3),
            fc=nn.Linear(16, 3),
        ),
    ),
    "features": (
        LinearEntry,
        VECTORS,
        lambda: nn.Sequential(nn.Linear(5, 4), nn.GELU(), nn.BatchNorm1d(4), nn.Linear(4, 3)),
    ),
    "tokens": (
        LinearEntry,
        (3, 6, 5),
        lambda: nn.Sequential(
            nn.Linear(5, 4), nn.Softplus(), nn.Dropout(), nn.Linear(4, 3), nn.ReLU(), nn.Flatten()
        ),
    ),
}


def first_of(model):
    return next(
        module
        for module in model.modules()
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear)
    )


def prepared(make, shape):
    torch.manual_seed(0)
    model, x = make().double(), torch.randn(shape, dtype=torch.float64)
    model(x)  # statistics that are not those of the start
    return model.eval().requires_grad_(False), x


@pytest.fixture(params=CHAINS)
def chain(request):
    kind, shape, make = CHAINS[request.param]
    return kind, *prepared(make, shape)


@torch.no_grad()
def test_units_that_go_take_their_contributions_along(chain):
    kind, model, x = chain
    graph, first = trace(model), first_of(model)
    axis = -1 if isinstance(first, nn.Linear) else 1
    cut = graph.cut([(graph.site(first), axis)])
    assert type(cut.entry) is kind
    state = cut.before(x)
    units = cut.entry.units(state.activation)
    samples, order = torch.tensor([2, 0]), torch.tensor([[1, 3, 0], [2, 1, 3]])
    each = cut.entry.contributions(units.own[samples], order)
    for turn in range(4):
        keep = torch.ones(2, 4, dtype=torch.float64).scatter_(1, order[:, :turn], 0)
        expected = cut.after(state, samples, [keep])
        gone = each[:, :turn].sum(1).view(2, *units.whole.shape[1:])
        found = cut.resume(state, samples, units.whole[samples] - gone)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    nothing = cut.after(state, samples, [torch.zeros(2, 4, dtype=torch.float64)])
    found = cut.resume(state, samples, units.none.expand(2, *units.whole.shape[1:]))
    torch.testing.assert_close(found, nothing, rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_inner_products_are_those_of_what_units_bring_to_the_layer_alone(chain):
    """Found by running the layer, without a BatchNorm that follows it, on one unit at a time."""
    _, model, x = chain
    graph, first = trace(model), first_of(model)
    cut = graph.cut([(graph.site(first), -1 if isinstance(first, nn.Linear) else 1)])
    state, seen = cut.before(x), []
    kinds = nn.Conv1d | nn.Conv2d | nn.Linear
    layer = next(m for m in model.modules() if isinstance(m, kinds) and m is not first)
    layer.register_forward_hook(lambda _module, _x, y: seen.append(y.clone()))
    for keep in (torch.zeros(4), *torch.eye(4)):
        cut.after(state, torch.arange(3), [keep.double().expand(3, -1)])
    brought = torch.stack([(each - seen[0]).flatten(1) for each in seen[1:]], 1)
    found = cut.entry.gram(cut.entry.units(state.activation).own)
    torch.testing.assert_close(found, brought @ brought.mT, rtol=1e-10, atol=1e-12)


WITHOUT = {
    "units are mixed on the way": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.Softmax(1), nn.Conv2d(4, 3, 3), nn.Flatten()
    ),
    "a residual branch": lambda: Forward(
        lambda m, x: m.second(y := m.first(x)).flatten(1) + y.flatten(1),
        first=nn.Conv2d(2, 4, 3), second=nn.Conv2d(4, 4, 1),
    ),
    "a grouped convolution": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, groups=2), nn.Flatten()
    ),
    "padding that reflects": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), nn.Flatten()
    ),
    "a Linear over positions": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.Linear(6, 3), nn.Flatten()
    ),
    "pooling over features": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(128, 8), nn.MaxPool1d(2), nn.Linear(4, 3)
    ),
    "the output": lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten()),
}  # fmt: skip


@pytest.mark.parametrize("make", WITHOUT.values(), ids=WITHOUT)
def test_there_is_no_entry_where_units_do_not_stay_by_themselves(make):
    model, _ = prepared(make, IMAGES)
    graph, first = trace(model), first_of(model)
    cut = graph.cut([(graph.site(first), -1 if isinstance(first, nn.Linear) else 1)])
    assert cut.entry is None


@torch.no_grad()
def test_shapes_that_tell_of_something_else_are_noticed():
    model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.MaxPool1d(2), nn.Conv1d(4, 3, 2)).eval()
    graph = trace(model)
    entry = graph.cut([(graph.site(model[0]), 1)]).entry
    assert entry.units(torch.randn(3, 4, 6)) is not None
    assert entry.units(torch.randn(4, 6)) is None
