"""Scores are of the model's own function and gradient, whatever its forward does."""

import functools
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pruning_lab.attributions import TaylorAttributionMetric
from pruning_lab.attributions.criteria.leave_one_out import LeaveOneOutAttributionMetric
from pruning_lab.attributions.unit_groups import units_of_module
from pruning_lab.errors import UserError
from pruning_lab.partial_forward.hooked import HookedGraph
from pruning_lab.partial_forward.traced import Graph

UNITS = 6
OUTSIDE = torch.linspace(0.5, 2, UNITS, dtype=torch.float64)


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.act = nn.Linear(5, UNITS), nn.ReLU()
        self.b, self.top = nn.Linear(UNITS, UNITS), nn.Linear(UNITS, 3)


class AddsUp(Base):
    def forward(self, x):
        level = torch.zeros(1, dtype=torch.float64)
        h = self.act(self.a(x))
        level += 1.5
        level += h[:1].mean() * 0
        return self.top(torch.tanh(self.b(h)) * level)


class NoGrad(Base):
    def forward(self, x):
        h = self.act(self.a(x))
        with torch.no_grad():
            centre = self.b(h)
        return self.top(h - centre)


class SetGradEnabled(Base):
    def forward(self, x):
        h = self.act(self.a(x))
        torch.set_grad_enabled(False)
        centre = self.b(h)
        torch.set_grad_enabled(True)
        return self.top(h - centre)


class Detached(Base):
    def forward(self, x):
        h = self.act(self.a(x))
        return self.top(h - self.b(h).detach() * self.b(h.data))


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return (4 * x).round() / 4

    @staticmethod
    def backward(ctx, gradient):
        return 3 * gradient


class StraightThrough(Base):
    def forward(self, x):
        return self.top(Rounded.apply(self.b(self.act(self.a(x)))))


class Checkpointed(Base):
    def forward(self, x):
        h = torch.utils.checkpoint.checkpoint(self.b, self.act(self.a(x)), use_reentrant=False)
        return self.top(torch.tanh(h))


class Autocast(Base):
    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            x = self.top(torch.tanh(self.b(self.act(self.a(x.float())))))
        return x.double()


class Closure(Base):
    def forward(self, x):
        return self.top(self.b(self.act(self.a(x)) * OUTSIDE))


class Keywords(Base):
    def forward(self, x, *rest, mask=None, **others):
        others.pop("output_attentions", None)
        return self.top(torch.tanh(self.b(self.act(self.a(x)))))


def handed_on(forward):
    @functools.wraps(forward)
    def wrapper(self, *args, **kwargs):
        return forward(self, *args, **kwargs)

    return wrapper


class Decorated(Base):
    @handed_on
    def forward(self, pixels=None, mask=None, **others):
        return self.top(torch.tanh(self.b(self.act(self.a(pixels)))))


class Caches(Base):
    def __init__(self):
        super().__init__()
        self.seen, self.calls = {}, 0
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        self.steps += 1
        if "cpu" not in self.seen:
            self.seen["cpu"] = self.b.weight.t() * 2
        return self.top(torch.tanh(self.act(self.a(x)) @ self.seen["cpu"]))


class Result(OrderedDict):
    @property
    def logits(self):
        return self["logits"]


@dataclass
class Plain:
    logits: torch.Tensor


class ResultOf(Base):
    kind = Result

    def forward(self, x):
        return self.kind(logits=self.top(torch.tanh(self.b(self.act(self.a(x))))))


class DataclassOf(ResultOf):
    kind = Plain


class Drawn(Base):
    def forward(self, x):
        return self.top(self.b(self.act(self.a(x))) + torch.rand(1).clamp(0.5, 0.5).double())


def loss(output, target, reduction="none"):
    return F.cross_entropy(getattr(output, "logits", output), target, reduction=reduction)


X = torch.randn(5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
DATA = [(X, torch.arange(5) % 3)]


def built(make):
    torch.manual_seed(0)
    model = make().eval()
    return model if isinstance(model, Autocast) else model.double()


def own_scores(model, module):
    """-a g of every unit, and by what the loss rises without it: by hooks on the model itself."""
    seen, (x, target), losses = {}, DATA[0], []
    hook = module.register_forward_hook(lambda m, _, output: seen.setdefault("a", output))
    (gradient,) = torch.autograd.grad(loss(model(x), target).sum(), seen["a"])
    hook.remove()
    for unit in (None, *range(UNITS)):
        keep = torch.arange(UNITS) != (-1 if unit is None else unit)
        hook = module.register_forward_hook(lambda m, _, output, keep=keep: output * keep)
        losses.append(loss(model(x), target).detach().numpy())
        hook.remove()
    taylor = -(seen["a"] * gradient).detach().double().numpy()
    return taylor, np.stack(losses[1:], 1) - losses[0][:, None]


MODELS = [AddsUp, NoGrad, SetGradEnabled, Detached, StraightThrough, Checkpointed, Autocast,
          Closure, Keywords, Decorated, Caches, ResultOf, DataclassOf, Drawn]  # fmt: skip


@pytest.mark.parametrize("make", MODELS)
def test_scores_are_those_of_the_model_itself(make):
    model, bound = built(make), 1e-9 if make is not Autocast else 1e-2
    for module, after_activation in ((model.a, False), (model.act, True)):
        taylor, rises = own_scores(model, module)
        assert np.abs(rises).max() > 1e-3
        assert np.abs(taylor).max() > 1e-3
        metric = TaylorAttributionMetric(model, DATA, loss, "cpu", "none", signed=True)
        np.testing.assert_allclose(
            metric.run(model.a, after_activation), taylor, rtol=bound, atol=bound
        )
        metric = LeaveOneOutAttributionMetric(model, DATA, loss, "cpu", "none")
        np.testing.assert_allclose(
            metric.run(model.a, after_activation), rises, rtol=bound, atol=bound
        )


def kind_of_graph(model, kind=TaylorAttributionMetric):
    return type(kind(model, DATA, loss, "cpu")._graph([units_of_module(model.a)]))


def test_hooks_are_taken_only_where_the_trace_is_another_function():
    for make in (AddsUp, Closure, Keywords, Decorated, Caches):
        assert kind_of_graph(built(make)) is Graph
    for make in (NoGrad, SetGradEnabled):
        assert kind_of_graph(built(make)) is HookedGraph  # the output is the same: the gradient not
        assert kind_of_graph(built(make), LeaveOneOutAttributionMetric) is Graph


class Remembers(Base):
    """What it gives depends on how often it ran."""

    def __init__(self):
        super().__init__()
        self.level = torch.zeros(1, dtype=torch.float64)

    def forward(self, x):
        self.level += 1
        return self.top(self.b(self.act(self.a(x))) * self.level)


class Counts(Base):
    calls = 0

    def forward(self, x):
        Counts.calls += 1
        return self.top(self.b(self.act(self.a(x))) * Counts.calls)


class OwnStream(Base):
    def __init__(self):
        super().__init__()
        self.stream = torch.Generator()

    def forward(self, x):
        return self.top(self.b(self.act(self.a(x)))) * torch.rand(1, generator=self.stream)


@pytest.mark.parametrize("kind", [TaylorAttributionMetric, LeaveOneOutAttributionMetric])
@pytest.mark.parametrize("make", [Remembers, Counts, OwnStream])
def test_a_model_that_changes_from_pass_to_pass_is_refused(make, kind):
    model = built(make)
    with pytest.raises(UserError, match=f"{make.__name__} gives another output when the same"):
        kind(model, DATA, loss, "cpu").run(model.a)
    if make is Remembers:
        assert model.level.item() == 0


def test_what_scoring_makes_the_code_write_is_put_back():
    model = built(Caches)
    LeaveOneOutAttributionMetric(model, DATA, loss, "cpu").run(model.a)
    assert (model.seen, model.calls, model.steps.item()) == ({}, 0, 0)


class AllNoGrad(Base):
    @torch.no_grad()
    def forward(self, x):
        return self.top(torch.tanh(self.b(self.act(self.a(x)))))


class AllInference(Base):
    @torch.inference_mode()
    def forward(self, x):
        return self.top(torch.tanh(self.b(self.act(self.a(x)))))


@pytest.mark.parametrize("make", [AllNoGrad, AllInference])
def test_a_model_without_gradients_has_scores_that_need_none(make):
    model, same = built(make), built(Keywords)
    with pytest.raises(UserError, match=r"No gradient leads from the loss.*leave_one_out"):
        TaylorAttributionMetric(model, DATA, loss, "cpu").run(model.a)
    expected = own_scores(same, same.act)[1]
    found = LeaveOneOutAttributionMetric(model, DATA, loss, "cpu", "none").run(model.a, True)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


class Inner(nn.Module):
    """Half of it is traced before it turns out that the other half cannot be."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(5, UNITS), nn.Linear(UNITS, 5)

    def forward(self, x):
        x = torch.tanh(self.fc1(x))
        if x.sum() > 1e9:
            x = -x
        return self.fc2(x)


class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.out, self.idle = Inner(), nn.Linear(5, 3), nn.Linear(2, 2)

    def forward(self, x):
        return self.out(self.inner(x))


def test_layers_inside_a_module_that_is_kept_whole_are_scored_by_hooks():
    model = built(Whole)
    taylor, rises = own_scores(model, model.inner.fc1)
    metric = TaylorAttributionMetric(model, DATA, loss, "cpu", "none", signed=True)
    np.testing.assert_allclose(metric.run(model.inner.fc1), taylor, rtol=1e-9)
    metric = LeaveOneOutAttributionMetric(model, DATA, loss, "cpu", "none")
    np.testing.assert_allclose(metric.run(model.inner.fc1), rises, rtol=1e-9, atol=1e-12)
    with pytest.raises(UserError, match=r"'inner.fc1' runs inside.*'inner': the code branches"):
        metric.run(model.inner.fc1, True)
    with pytest.raises(UserError, match="'idle' never runs"):
        metric.run(model.idle)


@pytest.mark.parametrize(
    "wrap", [lambda model: torch.compile(model, backend="eager"), nn.DataParallel]
)
def test_wrapped_models_are_scored_as_what_is_inside(wrap):
    model = built(Keywords)
    wrapped = wrap(model)
    wrapped(X)  # code that is compiled already does not see hooks
    for module, after_activation in ((model.a, False), (model.act, True)):
        taylor, rises = own_scores(model, module)
        metric = TaylorAttributionMetric(wrapped, DATA, loss, "cpu", "none", signed=True)
        np.testing.assert_allclose(
            metric.run(model.a, after_activation), taylor, rtol=1e-9, atol=1e-12
        )
        metric = LeaveOneOutAttributionMetric(wrapped, DATA, loss, "cpu", "none")
        np.testing.assert_allclose(
            metric.run(model.a, after_activation), rises, rtol=1e-9, atol=1e-12
        )


class CompiledInside(Base):
    def __init__(self):
        super().__init__()
        self.inside = torch.compile(nn.Sequential(self.a, self.act), backend="eager")

    def forward(self, x):
        return self.top(torch.tanh(self.b(self.inside(x))))


def test_layers_inside_a_compiled_module_are_scored_as_they_are():
    model = built(CompiledInside)
    with torch.no_grad():
        model(X)
    same = built(Keywords)
    same.load_state_dict({k: v for k, v in model.state_dict().items() if "inside" not in k})
    expected = own_scores(same, same.a)[1]
    metric = LeaveOneOutAttributionMetric(model, DATA, loss, "cpu", "none")
    np.testing.assert_allclose(metric.run(model.a), expected, rtol=1e-9, atol=1e-12)
