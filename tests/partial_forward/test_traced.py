"""Where activations are read, and what cannot be traced."""

import operator
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pruning_lab.coupling.structure import find_structure
from pruning_lab.errors import UserError
from pruning_lab.graph.refusals import UntraceableError
from pruning_lab.partial_forward.hooked import HookedGraph
from pruning_lab.partial_forward.traced import trace
from pruning_lab.pruner import Pruner


class Functional(nn.Module):
    """Every step between the layers is a function call."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.fc1 = nn.Linear(3 * 9, 5)
        self.fc2 = nn.Linear(5, 2)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv(x)), 2)
        x = F.dropout(x.view(x.size(0), -1), 0.5, self.training)
        x = torch.tanh(self.fc1(x)).reshape(x.shape[0], -1)
        return self.fc2(x)


def test_modules_from_elsewhere_are_refused():
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
    with pytest.raises(ValueError, match="not part of the model"):
        trace(model).site(nn.Linear(2, 4))


def test_a_module_that_does_not_run_once_has_no_single_place_to_read():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(nn.Linear(2, 4), shared, shared, nn.Linear(4, 1))
    with pytest.raises(ValueError, match="'1' runs 2 times in one forward pass"):
        trace(model).site(shared)
    model = Functional()
    model.idle = nn.Linear(4, 4)
    with pytest.raises(ValueError, match="'idle' never runs"):
        trace(model).site(model.idle)


def test_the_batchnorm_behind_is_the_one_that_directly_follows():
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 3), nn.ReLU(),
        nn.BatchNorm2d(3), nn.Conv2d(3, 2, 3),
    )  # fmt: skip
    graph = trace(model)
    assert graph.norm_after(model[0]) is model[1]
    assert graph.norm_after(model[3]) is None  # its ReLU comes first
    assert graph.norm_after(model[6]) is None
    tokens = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(7), nn.Linear(5, 2))
    assert trace(tokens).norm_after(tokens[0]) is None  # it normalises the 7 tokens
    with pytest.raises(UserError, match=r"The BatchNorm after Conv2d cannot be found\. It bends"):
        HookedGraph(model, UserError("It bends.")).norm_after(model[0])


def test_what_enters_a_module_is_recorded_before_it_runs():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(inplace=True), nn.Linear(3, 1))
    x = torch.randn(4, 2)
    for graph in (trace(model), HookedGraph(model, UserError("It bends."))):
        sites = [graph.entering(model[1]), graph.site(model[2]), graph.entering(model[0])]
        _, (entered, left, first) = graph.record(x.clone(), sites)
        torch.testing.assert_close(entered, model[0](x))
        torch.testing.assert_close(left, model(x))
        torch.testing.assert_close(first, x)


class Own(nn.Module):
    """A user's module without children: traced into, and still a place to read."""

    def forward(self, x):
        return x * torch.sigmoid(x)


class Stubborn(nn.Module):
    """Control flow on the data: kept whole."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return self.fc(x) if x.sum() > 0 else x


def test_every_module_has_a_site_even_one_that_is_traced_into_or_kept_whole():
    model = nn.Sequential(nn.Linear(2, 4), Own(), Stubborn(), nn.Linear(4, 1))
    graph = trace(model)
    assert graph.site(model[1]).target is operator.mul
    assert graph.site(model[2]).target == "2"
    x = torch.randn(5, 2)
    _, (activation,) = graph.record(x, [graph.site(model[1])])
    assert torch.equal(activation, model[1](model[0](x)))


def test_the_site_behind_a_layer_is_the_last_of_batchnorm_and_non_linearity():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 2, 3)
    )
    graph = trace(model)
    assert graph.site(model[0]).target == "0"
    assert graph.site(model[0], after_activation=True).target == "2"
    assert graph.site(model[4], after_activation=True).target == "4"


def test_the_site_behind_a_layer_may_be_a_function():
    model = Functional()
    assert trace(model).site(model.conv, after_activation=True).target is F.relu
    assert trace(model).site(model.fc1, after_activation=True).target is torch.tanh


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(2, 4), nn.Linear(4, 1)

    def forward(self, x):
        x = self.fc1(x)
        return self.fc2(x if x.sum() > 0 else -x)


def test_control_flow_on_the_data_cannot_be_traced_and_the_message_says_what_to_do():
    with pytest.raises(UntraceableError, match=r"Untraceable cannot be traced.*cascading_modules"):
        trace(Untraceable())


def test_tracing_changes_nothing():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))
    before, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    trace(model)
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())


class Conjunction(nn.Module):
    """Operators whose names end like those of in-place operations."""

    def forward(self, x):
        a, b = x > 0, x < 1
        both = a & b
        return x * a + x * both + x * (a | b)


def test_operators_are_not_taken_for_in_place_operations():
    model, x = Conjunction(), torch.linspace(-2, 2, 9)
    assert torch.equal(trace(model).module(x), model(x))


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 4), nn.Linear(4, 1)

    def forward(self, x):
        x = self.a(x)
        if x.shape[0] > 1:  # the line
            x = torch.relu(x)
        return self.b(x)


class Two(Branches):
    def forward(self, x, y):
        return self.b(torch.relu(self.a(x) + y))


class Tokens(Branches):
    def __init__(self):
        super().__init__()
        self.e = nn.Embedding(9, 2)

    def forward(self, ids):
        return self.b(torch.relu(self.a(self.e(ids)).mean(1)))


class Wraps(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Branches()

    def forward(self, x):
        return self.net(x) if len(x) else x


class InAList(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(2, 3), nn.Linear(3, 1)]

    def forward(self, x):
        return self.layers[1](self.layers[0](x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (InAList, "put them in an nn.ModuleList"),
        (
            Branches,
            r"branches on the data.*test_traced.py, line \d+: `if x.shape\[0\] >.*Move",
        ),
        (Two, r"Two.forward\(x, y\) cannot be called with one tensor.*missing.*'y'"),
        (Tokens, "its input of 2 must be integers; only a tensor of floats is supported"),
        (Wraps, r"If it only wraps its \.net, give that instead"),
        (lambda: nn.LazyLinear(3), "'weight' has no shape yet"),
    ],
)
def test_what_cannot_be_followed_is_refused_with_the_line_and_what_to_do(make, message):
    with pytest.raises(UserError, match=message):
        find_structure(make(), (2,))


class Caches(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)
        self.bias, self.cache = nn.Parameter(torch.randn(4, 4)), {}

    def forward(self, x):
        if self.training or "cpu" not in self.cache:
            self.cache["cpu"] = self.bias * 2
        return nn.ReLU()(self.a(x)) @ self.b.weight.t() @ self.cache["cpu"]


def test_code_that_caches_what_it_computes_is_followed_each_time_anew():
    model = Caches().eval()
    assert len(find_structure(model, (8,)).groups["a"]) == 16
    assert model.cache == {}


class Named(OrderedDict):
    """Like the outputs of libraries: by name, by number, by attribute."""

    def __getattr__(self, name):
        return self[name]

    def __getitem__(self, key):
        return list(self.values())[key] if isinstance(key, int) else super().__getitem__(key)


class KeptWhole(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        return Named(hidden=self.fc(x) if x.shape[1] < 99 else x, longest=torch.max(x, 1))


class Reads(nn.Module):
    def __init__(self, read):
        super().__init__()
        self.base, self.a, self.b, self.read = KeptWhole(), nn.Linear(8, 12), nn.Linear(12, 3), read

    def forward(self, x):
        return self.b(torch.relu(self.a(self.read(self.base(x)))))


@pytest.mark.parametrize(
    "read",
    [
        lambda out: out.hidden,
        operator.itemgetter(0),
        lambda out: out["longest"].values.unsqueeze(1).expand(-1, 8),
    ],
)
def test_results_keep_their_types(read):
    assert len(find_structure(Reads(read), (8,)).groups["a"]) == 12


@pytest.mark.parametrize("wrap", [lambda m: torch.compile(m, backend="eager"), nn.DataParallel])
def test_wrapped_models_are_pruned_as_what_is_inside(wrap):
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    x, wrapped = torch.randn(4, 5), wrap(model)
    wrapped(x)
    model[2].weight.data[:, 1] = 0  # the unit that goes
    expected = model(x)
    Pruner(wrapped, (5,), "cpu").prune_model(model[0], [1])
    assert model[0].out_features == 5
    torch.testing.assert_close(wrapped(x), expected)
