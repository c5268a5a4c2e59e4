"""Modules that are put in the place of others compute the same, and no more memory than allowed."""

import itertools
import weakref
from contextlib import closing

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

from pruning_lab.partial_forward.folding import ForSize, made_faster
from pruning_lab.partial_forward.small_maps import Products, faster
from pruning_lab.partial_forward.traced import trace


class Tripled(nn.BatchNorm2d):
    """A BatchNorm with code of its own."""

    def forward(self, x):
        return 3 * super().forward(x)


@given(
    eps=st.floats(1e-5, 1), bias=st.booleans(), affine=st.booleans(), groups=st.sampled_from([1, 2])
)
def test_folded_batchnorms_give_the_same(eps, bias, affine, groups):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=bias, groups=groups),
        nn.BatchNorm2d(4, eps, affine=affine),
        nn.ReLU(),
    ).double()
    x = torch.randn(3, 2, 8, 8, dtype=torch.float64)
    model(x)
    model.eval().requires_grad_(False)
    part = trace(model).module
    assert len(made_faster(part, {}, {})) == 1
    assert not any(isinstance(part.get_submodule(n.target), nn.BatchNorm2d)
                   for n in part.graph.nodes if n.op == "call_module")  # fmt: skip
    torch.testing.assert_close(part(x), model(x), rtol=1e-12, atol=1e-12)


CHANGES = {
    "train": lambda model: model[1].train(),
    "a hook on the convolution": lambda model: model[0].register_forward_hook(lambda *_: None),
    "a hook on the norm": lambda model: model[1].register_forward_hook(lambda *_: None),
    "computed weights": lambda model: parametrizations.weight_norm(model[0]),
    "computed weights of the norm": lambda model: parametrizations.weight_norm(model[1], dim=None),
    "no statistics": lambda model: setattr(
        model, "1", nn.BatchNorm2d(4, track_running_stats=False).eval()
    ),
    "a norm with code of its own": lambda model: setattr(model, "1", Tripled(4).eval()),
    "a method of its own": lambda model: setattr(model[1], "forward", lambda x: 3 * x),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_cannot_be_folded_stays(change):
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    change(model)
    part = trace(model).module
    before = [node.target for node in part.graph.nodes]
    assert not made_faster(part, {}, {})
    assert [node.target for node in part.graph.nodes] == before


def test_a_convolution_that_more_than_its_norm_reads_stays():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            x = self.conv(x)
            return x + self.norm(x)

    part = trace(Both().eval()).module
    assert not made_faster(part, {}, {})


def blocks(count):
    """Convolutions on 2x2 maps, each with a BatchNorm that has seen something."""
    torch.manual_seed(0)
    layers = [
        (nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU()) for _ in range(count)
    ]
    model = nn.Sequential(*sum(layers, ()), nn.Flatten(), nn.Linear(256, 2)).double()
    for _, norm, _ in layers:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        nn.init.normal_(norm.weight)
    return model.eval().requires_grad_(False)


def test_matrices_are_shared_from_layer_to_layer_and_go_when_none_behind_needs_them():
    model = blocks(4)
    graph, x = trace(model), torch.randn(2, 64, 2, 2).double()

    def matrices_behind(layer):
        with closing(graph.cut([(graph.site(model[layer]), 1)])) as cut:
            state, every = cut.before(x), torch.arange(2)
            cut.prepare(state, many=True)
            expected = model(x)
            kept = torch.ones(2, 64).double()
            torch.testing.assert_close(cut.after(state, every, [kept]), expected)
            entered = cut.entry.units(state.activation).whole
            torch.testing.assert_close(cut.resume(state, every, entered), expected)
            return [each for each in cut.entry.rest.modules() if isinstance(each, Products)]

    second, first = matrices_behind(0)  # from the last to the first
    (after_activation,) = matrices_behind(3)
    assert after_activation is second
    gone = weakref.ref(first)
    del first
    assert gone() is not None  # the entry's layer still runs when units are masked
    assert matrices_behind(6) == []
    assert gone() is None
    still, again = matrices_behind(0)
    assert still is second
    assert again is not second


@pytest.mark.parametrize(
    ("room", "expected"), [(0, []), (1, [0]), (2, [2]), (3, [0, 2]), (4, [1, 2]), (5, [0, 1, 2])]
)
def test_matrices_take_no_more_memory_than_they_may_the_last_come_first(
    room, expected, monkeypatch
):
    widths = (64, 64, 128, 64)
    model = nn.Sequential(
        *(nn.Conv2d(*pair, 3, padding=1) for pair in itertools.pairwise(widths))
    ).eval()
    weights = [faster(each, (2, 2)).weight.nbytes for each in model]
    assert [taken / weights[0] for taken in weights] == [1, 2, 2]
    made, seen = {}, {str(number): {(2, 2)} for number in range(3)}

    def fast(allowed, made):
        monkeypatch.setattr("pruning_lab.partial_forward.folding.MATRICES", allowed * weights[0])
        part = trace(model).module
        made_faster(part, seen, made)
        calls = [node.target for node in part.graph.nodes if node.op == "call_module"]
        return [i for i, at in enumerate(calls) if isinstance(part.get_submodule(at), ForSize)]

    assert fast(room, made) == expected
    assert fast(room, made) == expected  # the second time they are there
    assert len(made) == len(expected)
    assert fast(5, made) == [0, 1, 2]
    assert fast(room, made) == expected


class Keyword(nn.Module):
    """A convolution that runs twice, once with its input by keyword."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(64, 64, 3, padding=1)

    def forward(self, x):
        return self.conv(input=self.conv(x))


def test_modules_that_are_called_by_keyword():
    model, x = Keyword().eval().requires_grad_(False), torch.randn(2, 64, 2, 2)
    part = trace(model).module
    (module,) = made_faster(part, {"conv": {(2, 2)}}, {})
    assert isinstance(module, ForSize)
    torch.testing.assert_close(part(x), model(x))
