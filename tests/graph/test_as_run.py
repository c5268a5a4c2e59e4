"""Code that takes another way where it is traced is refused: its trace is not what it computes."""

import math
from inspect import signature

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from pruning_lab.coupling.structure import find_structure
from pruning_lab.graph.refusals import UntraceableError
from pruning_lab.pruner import Pruner

ONES = torch.ones(6)


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


def only_in_training(h, model):
    return h.flip(1) if model.training and isinstance(h, torch.Tensor) else h


def transposed(h):
    square = h.unflatten(1, (1, -1)).expand(-1, h.shape[1], -1)
    turned = square.transpose(1, 2)
    return F.softmax(turned if isinstance(h, torch.Tensor) else square, 2).sum(1)


class Network(nn.Module):
    def __init__(self, step):
        super().__init__()
        self.a, self.b, self.step = nn.Linear(4, 6), nn.Linear(6, 3), step
        self.tables = [torch.ones(6)]
        self.register_buffer("norm", torch.zeros(()))

    def forward(self, x):
        more = [self] if len(signature(self.step).parameters) > 1 else []
        return self.b(self.step(self.a(x), *more))


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
        (under_a_mode, "its trace"),
        (another_argument, "return h.roll"),
        (other_tensors, "return first + second.flip"),
        (less, "its trace"),
        (only_in_training, "return h.flip(1) if model.training"),
        (transposed, "return F.softmax(turned if"),
    ],
)
def test_code_that_is_traced_as_something_else_is_refused(step, line):
    model = Network(step).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UntraceableError, match=r"Network cannot be traced: it .* its trace") as e:
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


def numbers_of_numpy(h):
    return h / np.sqrt(6)


def a_tensor_of_the_module_s(h):
    return h * ONES


def a_list_of_tensors(h, model):
    return h * model.tables[0]


def values_of_constants(h):
    return h * torch.linspace(0, 1, 4)[2].item() * float(torch.tensor(2.0).sqrt())


def distributions(h):
    return h * torch.distributions.Normal(0.0, 1.0).sample()


def from_numpy(h):
    return h * torch.from_numpy(np.ones(6, dtype=np.float32))


@torch.fx.wrap
def shifted(h, shifts):
    shifts[0] = 0  # torchvision's window attention does so
    return h + shifts[0]


def a_list_that_is_written_to(h):
    return shifted(h, [1, 2])


def sums_over_parameters(h, model):
    model.total = sum(each.pow(2).sum() for each in model.parameters())
    model.norm.copy_(torch.stack([each.norm() for each in model.parameters()]).mean())
    return h


def standardised(h, model):
    weight = model.a.weight - model.a.weight.mean(1, keepdim=True)
    return h + weight.abs().sum(1)


UNITS_GO = (asks_in_vain, adds_in_place, numbers_of_numpy, values_of_constants, distributions,
            sums_over_parameters, standardised)  # fmt: skip
UNITS_STAY = (draws, constants, a_tensor_of_the_module_s, a_list_of_tensors, from_numpy,
              a_list_that_is_written_to)  # fmt: skip


@pytest.mark.parametrize("step", [*UNITS_GO, *UNITS_STAY])
@pytest.mark.parametrize("training", [False, True])
def test_code_that_computes_what_its_trace_does_is_followed(step, training):
    structure = Pruner(Network(step).train(training), (4,), "cpu").structure
    assert list(structure.groups) == (["a"] if step in UNITS_GO else [])


def the_width(h):
    return h * (h.shape[1] ** -0.5 if isinstance(h, torch.Tensor) else 6**-0.5)


def asks_the_width(h):
    return h.flip(1) if isinstance(h, torch.Tensor) and h.shape[1] != 6 else h


def the_number_of_weights(h, model):
    return h * sum(each.numel() for each in model.a.parameters()) ** -0.5


def the_size_of_a_weight(h, model):
    return h / math.sqrt(dict(model.named_parameters())["a.weight"].size(0))


def a_whole_number(h, model):
    return h * next(model.parameters()).shape[0]


def the_length_of_a_bias(h, model):
    return h * len(model.a._parameters["bias"]) ** 0.5


def fan_out(h, model):
    return h * nn.init._calculate_fan_in_and_fan_out(next(model.a.parameters()))[1] ** -0.5


@pytest.mark.parametrize(
    "step",
    [
        the_width, asks_the_width, the_number_of_weights, the_size_of_a_weight, a_whole_number,
        the_length_of_a_bias, fan_out,
    ],
)  # fmt: skip
def test_code_that_calculates_with_the_number_of_units_is_refused(step):
    model = Network(step)
    with pytest.raises(UntraceableError, match="cannot be traced: with fewer units it runs aten"):
        Pruner(model, (4,), "cpu").prune_model(model.a, [0])
    assert model.a.out_features == 6


def test_old_values_that_are_read_later_are_told_from_new_ones():
    def step(h):
        old = h
        h += h.flip(1)
        return old

    with pytest.raises(
        UntraceableError, match=r"runs aten\.addmm\.default with other arguments than its"
    ):
        find_structure(Network(step), (4,))


def test_code_that_calculates_with_a_width_in_training_alone_keeps_the_units():
    def step(h, model):
        return h / model.a.out_features if model.training else h

    structure = find_structure(Network(step), (4,))
    assert structure.frozen["a"] == "the code calculates with a.out_features"


def test_a_switch_that_is_turned_later_is_seen():
    def step(h, model):
        return h.flip(1) if model.deploy else h

    model = Network(step)
    model.deploy = False
    pruner = Pruner(model, (4,), "cpu")
    assert pruner.structure.units["a"].tolist() == pruner.structure.tensors["b.weight", 1].tolist()
    model.deploy = True
    turned = pruner.structure.tensors["b.weight", 1].tolist()
    assert pruner.structure.units["a"].tolist() == turned[::-1]
