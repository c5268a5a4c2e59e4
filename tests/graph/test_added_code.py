"""Code that runs beside a forward: what it touches stays, what it does not is cut exactly."""

import copy
import functools
import types
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from pruning_lab.coupling.structure import find_structure
from pruning_lab.graph.added_code import added_code
from pruning_lab.pruner import Pruner
from tests.coupling.checks import prune_and_compare
from tests.oracles.twin import randomise_all

SIZE = (6,)


class Block(nn.Sequential):
    def twice(self, x):
        return 2 * super().forward(x.flip(1))


class Net(nn.Module):
    """Four hidden layers, of which ``block`` holds two."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 8)
        self.block = Block(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(F.relu(self.block(F.relu(self.b(F.relu(self.a(x)))))))


def flipped(*call):
    """A hook of any kind: the last argument is what flows."""
    return call[-1].flip(-1) if isinstance(call[-1], torch.Tensor) else (call[-1][0].flip(-1),)


def with_keywords(module, args, kwargs, *output):
    return output[0].flip(-1) if output else ((args[0].flip(-1),), kwargs)


class Helper:
    def __init__(self, model):
        self.model = model

    def hook(self, module, args, output):
        return output * self.model.a.weight.mean()


def reading(thing):
    """A hook that reads something of the model beside what flows."""
    return lambda module, args, output: output * sum(p.mean() for p in thing.parameters())


def saved_and_added(net):
    store = {}
    net.a.register_forward_hook(lambda module, args, output: store.update(a=output))
    net.b.register_forward_hook(lambda module, args, output: output + store["a"])


def scaled(method, self, x):
    return 2 * method(x.flip(-1))


def mixing(self, x):
    return nn.Linear.forward(self, x).softmax(-1)


class Mirrored(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        result = super().__torch_function__(func, types, args, kwargs or {})
        return result.flip(-1) if func is F.linear else result


def mirrored(net):
    weight = nn.Parameter(net.b.weight.detach().as_subclass(Mirrored))
    net.b.weight = weight


ALL = {"a", "b", "block.0", "block.2"}
BLOCK = {"block.0", "block.2", "b"}
"""With the layer whose units go in."""

WAYS = {
    "a hook of a layer": (lambda net: net.b.register_forward_hook(flipped), {"b", "a"}),
    "a pre-hook of a layer": (lambda net: net.b.register_forward_pre_hook(flipped), {"b", "a"}),
    "a hook with keywords": (
        lambda net: net.b.register_forward_hook(with_keywords, with_kwargs=True), {"b", "a"},
    ),
    "a pre-hook with keywords": (
        lambda net: net.b.register_forward_pre_hook(with_keywords, with_kwargs=True), {"b", "a"},
    ),
    "a hook that is always called": (
        lambda net: net.b.register_forward_hook(flipped, always_call=True), {"b", "a"},
    ),
    "an observer": (lambda net: net.b.register_forward_hook(lambda *_: None), {"b", "a"}),
    "a hook of an activation": (
        lambda net: net.block[1].register_forward_hook(flipped), {"block.0"},
    ),
    "a hook of a container": (lambda net: net.block.register_forward_hook(flipped), BLOCK),
    "a pre-hook of a container": (lambda net: net.block.register_forward_pre_hook(flipped), BLOCK),
    "a hook of the model": (lambda net: net.register_forward_hook(lambda *_: None), ALL),
    "one saves, another adds": (saved_and_added, {"a", "b"}),
    "a hook that reads a layer": (
        lambda net: net.block[2].register_forward_hook(reading(net.a)), {"a", "block.0", "block.2"},
    ),
    "a hook that reads a weight": (
        lambda net: net.block[1].register_forward_hook(
            lambda module, args, output, weight=net.a.weight: output * weight.mean()
        ),
        {"a", "block.0"},
    ),
    "a hook that reads the model": (
        lambda net: net.block[1].register_forward_hook(reading(net)), ALL,
    ),
    "a method that holds the model": (
        lambda net: net.b.register_forward_hook(Helper(net).hook), ALL,
    ),
    "a method of the model": (
        lambda net: net.b.register_forward_hook(types.MethodType(lambda self, *_: None, net)), ALL,
    ),
    "a partial": (
        lambda net: net.b.register_forward_hook(functools.partial(flipped, net.a)), {"a", "b"},
    ),
    "a method for a layer's forward": (
        lambda net: setattr(net.b, "forward", types.MethodType(mixing, net.b)), {"a", "b"},
    ),
    "a function around a layer's forward": (
        lambda net: setattr(net.b, "forward", lambda x, old=net.b.forward: old(x.flip(-1))),
        {"a", "b"},
    ),
    "a partial around a container's forward": (
        lambda net: setattr(
            net.block, "forward", functools.partial(scaled, net.block.forward, net.block)
        ),
        BLOCK,
    ),
    "a method of another module": (
        lambda net: setattr(net.b, "forward", copy.deepcopy(net.b).forward), {"a", "b"},
    ),
    "another forward of a container, followed": (
        lambda net: setattr(net.block, "forward", net.block.twice), set(),
    ),
    "another forward of the model": (
        lambda net: setattr(net, "forward", lambda x: net.head(net.b(net.a(x.flip(1))))), ALL,
    ),
    "a parameter with operations of its own": (mirrored, {"a", "b"}),
}  # fmt: skip


def built(add):
    net = randomise_all(Net().double().eval())
    add(net)
    return net


@pytest.mark.parametrize("way", WAYS)
def test_what_added_code_touches_stays_and_the_rest_is_exact(way):
    add, stays = WAYS[way]
    structure = find_structure(built(add), SIZE)
    assert {layer for layer in ALL if layer in structure.frozen} == stays
    assert structure.groups.keys() == ALL - stays
    assert all("which cannot be followed" in structure.frozen[layer] for layer in stays)
    if stays != ALL and "parameter" not in way:
        outcome = prune_and_compare(built(add), SIZE)
        assert outcome.effect > 1e-3
        assert outcome.error < 1e-12
        # what the copy's code reads of the original is trained through it as well
        assert "reads" in way or "around" in way or outcome.step_error < 1e-12


def test_the_reason_names_the_hook_and_says_how_to_get_rid_of_it():
    net = built(lambda net: net.b.register_forward_hook(flipped))
    with pytest.raises(ValueError, match=r"hook `flipped` of 'b' \(handle.remove\(\) removes it"):
        Pruner(net, SIZE, "cpu").prune_model(net.a, [0])


@pytest.mark.parametrize(
    "register", [register_module_forward_hook, register_module_forward_pre_hook]
)
def test_a_hook_of_all_modules_keeps_all_units(register):
    handle = register(lambda *_: None)
    try:
        structure = find_structure(Net(), SIZE)
    finally:
        handle.remove()
    assert structure.groups == {}
    assert "a hook of all modules" in structure.frozen["block.2"]
    assert find_structure(Net(), SIZE).groups.keys() == ALL


def test_a_function_in_the_place_of_one_of_torchs_keeps_all_units(monkeypatch):
    def linear(x, weight, bias=None):
        return x.flip(1) @ weight.T + bias

    monkeypatch.setattr(F, "linear", linear)
    structure = find_structure(Net(), SIZE)
    assert structure.groups == {}
    assert "`linear` in the place of torch.nn.functional.linear" in structure.frozen["a"]


def test_hooks_that_come_and_go_later_are_seen():
    net = Net()
    pruner = Pruner(net, SIZE, "cpu")
    assert pruner.structure.groups.keys() == ALL
    handle = net.b.register_forward_hook(flipped)
    with pytest.raises(ValueError, match="hook `flipped` of 'b'"):
        pruner.prune_model(net.a, [0])
    handle.remove()
    pruner.prune_model(net.a, [0])
    assert net.a.out_features == 7


def test_a_call_of_its_own_is_followed_but_not_around_the_whole_model():
    class Called(nn.Sequential):
        def __call__(self, x):
            return super().__call__(x).softmax(-1)

    inner = nn.Sequential(Called(nn.Linear(6, 8)), nn.Linear(8, 8), nn.Linear(8, 3))
    assert find_structure(inner, SIZE).groups.keys() == {"1"}
    assert "softmax" in find_structure(inner, SIZE).frozen["0.0"]
    whole = Called(nn.Linear(6, 8), nn.Linear(8, 3))
    assert "Called.__call__" in find_structure(whole, SIZE).frozen["0"]
    graph = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3)))
    assert find_structure(graph, SIZE).groups.keys() == {"0"}


def test_a_forward_of_torch_that_was_replaced_is_not_taken_for_it(monkeypatch):
    monkeypatch.setattr(nn.ReLU, "forward", lambda self, x: x.softmax(-1))
    structure = find_structure(Net(), SIZE)
    assert structure.groups.keys() == {"a", "b", "block.2"}
    assert "in the place of torch's ReLU.forward" in structure.frozen["block.0"]


COMPUTED = {
    "spectral norm": parametrizations.spectral_norm,
    "weight norm": parametrizations.weight_norm,
    "orthogonal": parametrizations.orthogonal,
    "spectral norm by a hook": spectral_norm,
    "weight norm by a hook": weight_norm,
    "a mask": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "a mask of the bias": lambda layer: prune.l1_unstructured(layer, "bias", 0.5),
}


@pytest.mark.parametrize("how", COMPUTED)
@pytest.mark.filterwarnings("ignore")
def test_a_weight_that_torch_computes_is_the_reason(how):
    net = Net()
    COMPUTED[how](net.block[0])
    structure = find_structure(net, SIZE)
    name = "bias" if "bias" in how else "weight"
    assert f"the {name} of 'block.0' is computed" in structure.frozen["block.0"]
    assert structure.groups.keys() == {"a", "block.2"}


def test_what_never_runs_is_told_from_what_others_use():
    class Fused(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide, self.narrow, self.idle = (nn.Conv2d(2, 4, k) for k in (3, 1, 1))
            self.head = nn.Conv2d(4, 1, 1)

        def forward(self, x):
            kernel = self.wide.weight + F.pad(self.narrow.weight, (1, 1, 1, 1))
            return self.head(F.conv2d(x, kernel, self.wide.bias + self.narrow.bias))

    frozen = find_structure(Fused(), (2, 5, 5)).frozen
    assert frozen["idle"] == "it never runs"
    used = "its weight is used by other code, it is not called itself"
    assert frozen["wide"] == frozen["narrow"] == used


def test_two_names_of_one_weight_have_one_reason():
    net = nn.Sequential(nn.Linear(6, 8), nn.Softmax(-1), nn.Linear(8, 3))
    net.twin = nn.Linear(6, 8)
    net.twin.weight = net[0].weight
    net.forward = types.MethodType(lambda self, x: self[2](self[1](self[0](x))), net)
    wrapped = nn.Sequential(net)
    frozen = find_structure(wrapped, SIZE).frozen
    assert frozen["0.twin"] == frozen["0.0"]


def test_modules_of_torch_and_graphs_have_nothing_added():
    layers = [nn.LSTM(3, 4), nn.TransformerEncoderLayer(8, 2), nn.BatchNorm2d(3), nn.Sequential()]
    assert added_code(nn.ModuleList(layers)) == {}


@pytest.mark.parametrize("method", ["_conv_forward", "_call_impl"])
def test_units_that_meet_a_replaced_method_stay(method):
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.Flatten())
    own = {
        "_conv_forward": lambda x, w, b: F.conv2d(x, w - w.mean((1, 2, 3), keepdim=True), b),
        "_call_impl": lambda x: F.conv2d(x, model[2].weight * 0.3, model[2].bias),
    }
    setattr(model[2], method, own[method])
    structure = find_structure(model, (1, 4, 4))
    assert structure.groups == {}
    assert method in structure.frozen["0"]


class Reads(nn.Module):
    """Is kept whole, and reads a layer that it does not hold."""

    def __init__(self, others):
        super().__init__()
        self.others = others

    def forward(self, x):
        _, units = list(x.shape)
        assert units
        return x * self.others[0].a.weight.mean()


def test_what_a_kept_module_reads_in_another_way_stays():
    net = Net()
    net.block.append(Reads([net]))
    structure = find_structure(net, SIZE)
    assert "a" not in structure.groups
    assert structure.frozen["a"] == "its units meet `Reads`, which cannot be followed"


@pytest.mark.parametrize("refer", [lambda m: lambda: m, weakref.ref])
def test_a_layer_that_a_function_or_a_reference_leads_to_stays(refer):
    net = Net()
    net.elsewhere = refer(net.a)
    structure = find_structure(net, SIZE)
    assert "a" not in structure.groups
    assert "'a', reached through elsewhere of '' and not as a submodule" in structure.frozen["a"]
