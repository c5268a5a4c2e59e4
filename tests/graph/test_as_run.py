"""Code that takes another way where it is traced is refused: its trace is not what it computes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from pruning_lab.graph import UntraceableError, find_structure
from pruning_lab.pruner import Pruner


def isinstance_tensor(h):
    return h.flip(1) if isinstance(h, torch.Tensor) else h


def is_tensor(h):
    return h.flip(1) if torch.is_tensor(h) else h


def exact_type(h):
    return h.flip(1) if type(h) is torch.Tensor else h


def has_attribute(h):
    return h if hasattr(h, "node") else h.flip(1)


def tried_length(h):
    try:
        return h.flip(1) if len(h) else h
    except Exception:
        return h


def asked_of_torch(h):
    return h if torch.fx._symbolic_trace.is_fx_tracing() else h.flip(1)


def only_without_gradients(h):
    return h if torch.is_grad_enabled() else h.flip(1)


def only_with_gradients(h):
    return h.flip(1) if torch.is_grad_enabled() else h


class Flipped(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        return result.flip(1) if func is F.relu and isinstance(result, torch.Tensor) else result


def under_a_mode(h):
    with Flipped():
        return F.relu(h)


def another_argument(h):
    return h.roll(2 if isinstance(h, torch.Tensor) else 1, 1)


def other_tensors(h):
    first, second = h * 2, h * 3
    return first + second.flip(1) if isinstance(h, torch.Tensor) else second + first.flip(1)


def less(h):
    return h if isinstance(h, torch.Tensor) else h.flip(1)


class Network(nn.Module):
    def __init__(self, step):
        super().__init__()
        self.a, self.b, self.step = nn.Linear(4, 6), nn.Linear(6, 3), step

    def forward(self, x):
        return self.b(self.step(self.a(x)))


@pytest.mark.parametrize(
    ("step", "line"),
    [
        (isinstance_tensor, "return h.flip(1) if isinstance"),
        (is_tensor, "return h.flip(1) if torch.is_tensor"),
        (exact_type, "return h.flip(1) if type(h) is"),
        (has_attribute, "return h if hasattr"),
        (tried_length, "return h.flip(1) if len(h)"),
        (asked_of_torch, "return h if torch.fx"),
        (only_without_gradients, "return h if torch.is_grad_enabled()"),
        (only_with_gradients, "return self.b("),
        (under_a_mode, "where its trace runs"),
        (another_argument, "return h.roll"),
        (other_tensors, "return first + second.flip"),
        (less, "where its trace runs"),
    ],
)
def test_code_that_is_traced_as_something_else_is_refused(step, line):
    model = Network(step).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UntraceableError, match=r"Network cannot be traced: .* its trace runs") as e:
        Pruner(model, (4,), "cpu").prune_model(model.a, [0])
    assert line in str(e.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def asks_in_vain(h):
    if isinstance(h, torch.Tensor):
        assert h.ndim == 2
    return F.relu(h)


def adds_in_place(h):
    h += 1
    h *= 2
    return h


def draws(h):
    return h * torch.rand(h.shape[1])


def constants(h):
    steps = torch.arange(6).float().mul_(2) + 1
    return h * steps.cumsum(0).to(h)


@pytest.mark.parametrize("step", [asks_in_vain, adds_in_place, draws, constants])
@pytest.mark.parametrize("training", [False, True])
def test_code_that_computes_what_its_trace_does_is_followed(step, training):
    structure = find_structure(Network(step).train(training), (4,))
    assert list(structure.groups) == (["a"] if step in (asks_in_vain, adds_in_place) else [])


def test_old_values_that_are_read_later_are_told_from_new_ones():
    def step(h):
        old = h
        h += h.flip(1)
        return old

    with pytest.raises(UntraceableError, match=r"its trace runs aten\.addmm\.default with other"):
        find_structure(Network(step), (4,))
