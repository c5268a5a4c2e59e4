"""Batches of several inputs, named ones, whole numbers, and outputs that are no tensors."""

from collections import UserDict
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from pruning_lab.attributions import ShapleyAttributionMetric, TaylorAttributionMetric
from pruning_lab.attributions.criteria.conductance import ConductanceAttributionMetric
from pruning_lab.attributions.criteria.leave_one_out import LeaveOneOutAttributionMetric
from pruning_lab.attributions.criteria.owen_gradient import OwenGradientAttributionMetric
from pruning_lab.attributions.criteria.shapley_exact import ExactShapleyAttributionMetric
from pruning_lab.attributions.observation.checks import tensors_in
from pruning_lab.errors import UserError
from pruning_lab.runtime.inputs import in_float32


@dataclass
class Output:
    logits: torch.Tensor
    hidden: torch.Tensor


class Reader(nn.Module):
    """Tokens and a mask, and one number more; its output is a dataclass."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.hidden = nn.Linear(7, 5)
        self.out = nn.Linear(5, 3)

    def forward(self, tokens, mask=None, number=None, scale=1.0):
        words = self.embed(tokens)
        if mask is not None:
            words = words * mask.unsqueeze(-1)
        read = torch.cat([words.mean(1), number.unsqueeze(1)], 1)
        hidden = torch.relu(self.hidden(read))
        return Output(scale * self.out(hidden), hidden)


class Both(nn.Module):
    """A model of two inputs."""

    def __init__(self, bilinear):
        super().__init__()
        self.bilinear = bilinear

    def forward(self, one, two):
        return self.bilinear(one, two)


def squares(output, target, reduction):
    return (output.sum(1) - target) ** 2


def loss(output, target, reduction):
    return F.cross_entropy(output.logits, target, reduction=reduction)


def make_samples(count=6):
    draw = torch.Generator().manual_seed(0)
    return (
        torch.randint(11, (count, 4), generator=draw),
        torch.rand(count, 4, generator=draw) > 0.3,
        torch.randn(count, generator=draw),
        torch.randint(3, (count,), generator=draw),
    )


@pytest.fixture(scope="module")
def reader():
    torch.manual_seed(1)
    return Reader().eval()


NAMES = ("tokens", "mask", "number", "labels")

FORMS = {
    "positional": lambda samples: samples,
    "a list": list,
    "nested": lambda samples: (samples[:3], samples[3]),
    "named": lambda samples: dict(zip(NAMES, samples, strict=True)),
    "named, in a pair": lambda samples: (dict(zip(NAMES, samples[:3], strict=False)), samples[3]),
    "another mapping": lambda samples: UserDict(zip(NAMES, samples, strict=True)),
}


def batches(form):
    samples = make_samples()
    return [FORMS[form](tuple(t[rows] for t in samples)) for rows in (slice(4), slice(4, None))]


def losses_without(model, unit, kept=None):
    """The oracle: every sample's loss with a unit (or all but ``kept``) at 0, by a hook."""
    mask = torch.ones(5)
    if kept is None:
        mask[[] if unit is None else [unit]] = 0
    else:
        mask = torch.tensor(kept, dtype=torch.float32)
    handle = model.hidden.register_forward_hook(lambda m, i, o: o * mask)
    tokens, present, number, target = make_samples()
    with torch.no_grad():
        losses = loss(model(tokens, present, number), target, "none")
    handle.remove()
    return losses


@pytest.mark.parametrize("form", FORMS)
def test_leave_one_out_is_the_rise_of_the_loss(reader, form):
    metric = LeaveOneOutAttributionMetric(reader, batches(form), loss, "cpu")
    full = losses_without(reader, None)
    expected = [(losses_without(reader, unit) - full).mean() for unit in range(5)]
    np.testing.assert_allclose(metric.run(reader.hidden), expected, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_taylor_is_a_loop_of_autograd(reader, form):
    tokens, mask, number, target = make_samples()
    expected = []
    for n in range(len(target)):
        rows = slice(n, n + 1)
        seen = []
        handle = reader.hidden.register_forward_hook(lambda m, i, o, seen=seen: seen.append(o))
        of_sample = loss(reader(tokens[rows], mask[rows], number[rows]), target[rows], "sum")
        handle.remove()
        (gradient,) = torch.autograd.grad(of_sample, seen[0])
        expected.append((gradient * seen[0].detach()).abs()[0])
    metric = TaylorAttributionMetric(reader, batches(form), loss, "cpu")
    np.testing.assert_allclose(
        metric.run(reader.hidden), torch.stack(expected).mean(0), rtol=1e-5, atol=1e-7
    )


def test_shapley_values_are_those_of_all_coalitions(reader):
    from itertools import permutations

    values = {}
    for number in range(32):
        kept = tuple(number >> unit & 1 for unit in range(5))
        values[kept] = losses_without(reader, None, kept).double().mean().item()
    expected = np.zeros(5)
    orders = list(permutations(range(5)))
    for order in orders:
        kept = [1] * 5
        for unit in order:
            before = values[tuple(kept)]
            kept[unit] = 0
            expected[unit] += (values[tuple(kept)] - before) / len(orders)
    exact = ExactShapleyAttributionMetric(reader, batches("named"), loss, "cpu")
    np.testing.assert_allclose(exact.run(reader.hidden), expected, atol=1e-6)
    sampled = ShapleyAttributionMetric(reader, batches("named"), loss, "cpu", sv_samples=64)
    np.testing.assert_allclose(sampled.run(reader.hidden).sum(), expected.sum(), atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_form_gives_the_same_scores(reader, form, precision):
    scores = partial(
        OwenGradientAttributionMetric, reader, criterion=loss, device="cpu", precision=precision
    )
    given = scores(data_generator=batches(form)).run(reader.hidden)
    assert np.isfinite(given).all()
    np.testing.assert_array_equal(
        given, scores(data_generator=batches("positional")).run(reader.hidden)
    )


def test_conductance_refuses_whole_numbers_and_scales_every_input(reader):
    metric = ConductanceAttributionMetric(reader, batches("named"), loss, "cpu")
    with pytest.raises(UserError, match=r"conductance scales the inputs.* torch\.bool"):
        metric.run(reader.hidden)
    torch.manual_seed(0)
    model, one, two, target = (
        nn.Bilinear(2, 3, 4),
        torch.rand(5, 2),
        torch.rand(5, 3),
        torch.ones(5),
    )
    scores = [
        ConductanceAttributionMetric(Both(model), data, squares, "cpu", steps=64).run(model)
        for data in ([(one, two, target)], [{"one": one, "two": two, "labels": target}])
    ]
    np.testing.assert_array_equal(*scores)
    at_0 = squares(model(0 * one, 0 * two), target, "none")
    drop = (at_0 - squares(model(one, two), target, "none")).mean()
    np.testing.assert_allclose(scores[0].sum(), drop.item(), rtol=1e-3)  # complete


class Folds(nn.Module):
    """Changes its inputs in place, of some samples only."""

    def __init__(self):
        super().__init__()
        self.embed, self.hidden, self.out = nn.Embedding(10, 6), nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, tokens, mask):
        tokens[tokens > 9] -= 10
        return self.out(torch.relu(self.hidden((self.embed(tokens) * mask.unsqueeze(2)).mean(1))))


@pytest.mark.parametrize("kind", [LeaveOneOutAttributionMetric, ShapleyAttributionMetric])
def test_a_model_may_change_its_inputs_in_place(kind):
    torch.manual_seed(0)
    model, tokens, mask = Folds().eval(), torch.arange(24).view(6, 4) % 17, torch.ones(6, 4)
    target = torch.arange(6) % 3
    assert (tokens[0] < 10).all()
    assert (tokens > 9).any()
    given, folded = ([(t.clone(), mask, target)] for t in (tokens, tokens - 10 * (tokens > 9)))
    metrics = [kind(model, data, F.cross_entropy, "cpu") for data in (given, folded)]
    scores = [metric.run(model.hidden) for metric in metrics]
    np.testing.assert_array_equal(*scores)
    assert torch.equal(given[0][0], tokens)


@dataclass(slots=True)
class Slots:
    logits: torch.Tensor


def test_an_output_is_converted_to_float32_whatever_holds_it():
    logits = torch.ones(2, 3, dtype=torch.bfloat16)
    for output in (Slots(logits), [Slots(logits)], Output(logits, logits)):
        converted = in_float32(output)
        first = converted[0] if isinstance(converted, list) else converted
        assert first.logits.dtype == torch.float32
    assert logits.dtype == torch.bfloat16
    assert len(list(tensors_in(Slots(logits)))) == 1


def test_a_loader_of_nested_samples_gives_the_same_scores(reader):
    tokens, mask, number, target = make_samples()
    samples = [((tokens[n], mask[n], number[n]), target[n]) for n in range(6)]
    scores = [
        TaylorAttributionMetric(reader, data, loss, "cpu").run(reader.hidden)
        for data in (DataLoader(samples, 4), batches("positional"))  # it collates tuples to lists
    ]
    np.testing.assert_array_equal(*scores)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"tokens": torch.zeros(2, 4)}, "the target as 'labels'; this one is a dict of 1"),
        ((torch.zeros(2, 4),), "a pair .input, target., a tuple with the target last"),
        (
            (torch.zeros(2, 4), torch.zeros(3, 1), torch.zeros(2)),
            r"there are inputs \(2, 4\), \(3,",
        ),
        ((torch.zeros(2, 4), "classes"), "The target of a batch must be a tensor, or several"),
        (({"scale": 2.0}, torch.zeros(2)), "The inputs of a batch must be a tensor"),
        (
            {"words": torch.zeros(2, 4), "labels": torch.zeros(2)},
            "cannot be called with the named arguments words, all that it gets",
        ),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(reader, batch, message):
    metric = TaylorAttributionMetric(reader, [batch], loss, "cpu")
    with pytest.raises(UserError, match=message):
        metric.run(reader.hidden)
