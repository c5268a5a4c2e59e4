"""Running only the part behind a site equals running the whole model."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pruning_lab.partial_forward.cut import Cut
from pruning_lab.partial_forward.hooked import HookedGraph
from pruning_lab.partial_forward.traced import trace


class Branches(nn.Module):
    """A residual branch crosses the cut, and every operation that can is in place."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.inner = nn.Conv2d(4, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.stem(x)
        y = F.relu(self.bn(self.inner(x)), inplace=True)
        x += y
        return self.head(x.mean((2, 3)))


class NumbersCross(nn.Module):
    """A number read off the batch crosses the cut: copies of the batch cannot be stacked."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x):
        n = x.size(0)
        return self.fc2(F.relu(self.fc1(x)).view(n, -1))


@pytest.fixture(params=["traced", "hooked"])
def graph_of(request):
    if request.param == "traced":
        return trace
    return lambda model: HookedGraph(model, ValueError("not traced"))


def rows(*samples):
    return torch.tensor(samples)


def ones(*shape):
    return torch.ones(*shape, dtype=torch.float64)


@torch.no_grad()
def test_with_all_units_kept_the_output_is_the_models_own(graph_of):
    model, x = Branches().double().eval(), torch.randn(5, 1, 6, 6).double()
    graph = graph_of(model)
    cut = graph.cut([(graph.site(model.inner), 1)])
    state = cut.before(x)
    for _ in range(2):  # twice: nothing in the state may have been overwritten
        torch.testing.assert_close(cut.after(state, torch.arange(5), [ones(5, 4)]), model(x))


@torch.no_grad()
def test_rows_are_any_samples_under_any_mask(graph_of):
    model, x = Branches().double().eval(), torch.randn(5, 1, 6, 6).double()
    graph = graph_of(model)
    cut = graph.cut([(graph.site(model.bn), 1)])
    keep = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]]).double()
    found = cut.after(cut.before(x), rows(3, 3, 0), [keep])
    stem = model.stem(x[[3, 3, 0]])
    inner = F.relu(model.bn(model.inner(stem)) * keep[:, :, None, None])
    torch.testing.assert_close(found, model.head((stem + inner).mean((2, 3))))


@torch.no_grad()
def test_units_of_several_layers_are_masked_at_once(graph_of):
    model, x = Branches().double().eval(), torch.randn(5, 1, 6, 6).double()
    graph = graph_of(model)
    cut = graph.cut([(graph.site(model.bn), 1), (graph.site(model.stem), 1)])
    keep = torch.tensor([[1, 0, 1, 0], [0, 1, 1, 1]]).double()
    found = cut.after(cut.before(x), rows(4, 1), [keep, keep])
    mask = keep[:, :, None, None]
    stem = model.stem(x[[4, 1]]) * mask
    inner = F.relu(model.bn(model.inner(stem)) * mask)
    torch.testing.assert_close(found, model.head((stem + inner).mean((2, 3))))


@torch.no_grad()
def test_only_what_lies_behind_the_site_runs_again():
    model, calls = Branches().eval(), []
    for name, module in model.named_children():
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
    graph = trace(model)
    cut = graph.cut([(graph.site(model.bn), 1)])
    state = cut.before(torch.randn(2, 1, 6, 6))
    assert set(calls) == {"stem", "inner", "bn"}
    calls.clear()
    cut.after(state, torch.arange(2), [torch.ones(2, 4)])
    assert calls == ["head"]


@torch.no_grad()
def test_a_number_that_crosses_the_cut_forbids_choosing_rows():
    model, x = NumbersCross().double().eval(), torch.randn(3, 4).double()
    graph = trace(model)
    cut = graph.cut([(graph.site(model.fc1, after_activation=True), -1)])
    state = cut.before(x)
    assert isinstance(cut, Cut)
    assert not state.stackable
    torch.testing.assert_close(cut.after(state, torch.arange(3), [ones(3, 6)]), model(x))


class ConstantCrosses(nn.Module):
    """A constant of the batch's length that does not belong to its samples."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 3), nn.Linear(3, 3)
        self.scale = nn.Parameter(torch.randn(3))

    def forward(self, x):
        scale = self.scale * 2
        return self.fc2(self.fc1(x)) * scale


@torch.no_grad()
def test_a_constant_that_crosses_is_the_same_for_every_row():
    model, x = ConstantCrosses().double().eval(), torch.randn(3, 4).double()
    graph = trace(model)
    cut = graph.cut([(graph.site(model.fc1), -1)])
    found = cut.after(cut.before(x), rows(2, 0), [ones(2, 3)])
    torch.testing.assert_close(found, model(x)[[2, 0]])


def test_recorded_activations_are_untouched_by_in_place_operations(graph_of):
    model, x = Branches().double().eval().requires_grad_(False), torch.randn(5, 1, 6, 6).double()
    graph = graph_of(model)
    output, (stem, bn) = graph.record(x, [graph.site(model.stem), graph.site(model.bn)])
    torch.testing.assert_close(stem, model.stem(x))
    assert (stem < 0).any()
    (gradient,) = torch.autograd.grad(output.sum(), [bn])
    leaf = bn.detach().requires_grad_()
    after = model.head((F.relu(leaf) + stem.detach()).mean((2, 3)))
    (expected,) = torch.autograd.grad(after.sum(), [leaf])
    torch.testing.assert_close(gradient, expected)


def test_a_module_that_never_runs_is_refused(graph_of):
    model = Branches()
    model.unused = nn.Linear(2, 2)
    graph = graph_of(model)
    with pytest.raises(ValueError, match="never runs"):
        graph.record(torch.randn(1, 1, 6, 6), [graph.site(model.unused)])


def test_without_a_trace_the_site_behind_cannot_be_found():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    with pytest.raises(ValueError, match=r"cannot be found: .* not traced"):
        HookedGraph(model, ValueError("not traced")).site(model[0], after_activation=True)
