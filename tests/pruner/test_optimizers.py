"""After a cut every torch optimizer steps as if nothing had gone, or is refused before it.

Oracle: an unpruned copy of model and optimizer takes the same steps with the full gradients; the
kept weights and their state, picked by hand, must be those of the pruned model.
"""

import copy
import inspect
import io
import types

import pytest
import torch
from torch import nn, optim

from pruning_lab.pruner import Pruner
from tests.oracles.masked_twin import randomise

SLICED = {
    optim.ASGD: [{"t0": 2, "lambd": 0.1}],
    optim.Adadelta: [{"rho": 0.5}],
    optim.Adagrad: [{"lr_decay": 0.1, "initial_accumulator_value": 0.3}],
    optim.Adam: [{"amsgrad": True}, {"amsgrad": True, "foreach": True}],
    optim.Adamax: [{"betas": (0.5, 0.7)}],
    optim.AdamW: [{"amsgrad": True, "weight_decay": 0.1}],
    optim.NAdam: [{"momentum_decay": 0.1}],
    optim.RAdam: [{"betas": (0.5, 0.7)}],
    optim.RMSprop: [{"centered": True, "momentum": 0.5}, {"centered": True, "foreach": True}],
    optim.Rprop: [{"etas": (0.4, 1.3)}],
    optim.SGD: [
        {"momentum": 0.9},
        {"momentum": 0.9, "dampening": 0.2, "weight_decay": 0.1, "maximize": True},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.9, "foreach": True},
        {"momentum": 0.9, "fused": True},
    ],
}
REFUSED = {
    "Adafactor": "means over rows and columns",
    "LBFGS": "all weights together",
    "Muon": "orthogonalises a whole matrix",
    "SparseAdam": "no dense gradients",
}
COMMON = [
    {"foreach": False},
    {"foreach": True},
    {"fused": True},
    {"maximize": True},
    {"weight_decay": 0.1},
    {"weight_decay": 0.1, "decoupled_weight_decay": True},
    {"lr": "tensor", "foreach": False},
]
SCALARS = {
    "lr", "alpha", "betas", "dampening", "eps", "etas", "initial_accumulator_value", "lambd",
    "lr_decay", "momentum", "momentum_decay", "rho", "step_sizes", "t0", "weight_decay",
}  # fmt: skip
FLAGS = {
    "amsgrad", "capturable", "centered", "decoupled_weight_decay", "differentiable", "foreach",
    "fused", "maximize", "nesterov",
}  # fmt: skip


def options_of(kind):
    """The names of what can be set in an optimizer, besides its parameters."""
    return set(inspect.signature(kind.__init__).parameters) - {"self", "params"}


def optimizers_of_torch():
    found = {each for each in vars(optim).values() if inspect.isclass(each)}
    kinds = {each for each in found if issubclass(each, optim.Optimizer)} - {optim.Optimizer}
    return sorted(kinds, key=lambda kind: kind.__name__)


CASES = {
    f"{kind.__name__} {options}": (kind, options)
    for kind, own in SLICED.items()
    for options in [{}, *COMMON, *own]
    if set(options) <= options_of(kind)
}


@pytest.mark.parametrize("kind", optimizers_of_torch(), ids=lambda kind: kind.__name__)
def test_every_optimizer_of_torch_is_decided(kind):
    """Whoever adds one, or an option, must find out whether weights are still updated singly."""
    if kind.__name__ not in REFUSED:
        assert kind in SLICED
        assert options_of(kind) <= SCALARS | FLAGS


def network():
    model = nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Conv2d(5, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 9, 6),
        nn.ReLU(),
        nn.Linear(6, 3),
    )
    return randomise(model.double())


def picked(name, tensor, kept):
    """What is left of one of the network's tensors when only ``kept`` units of its layers are."""
    flat = [channel * 9 + position for channel in kept[3] for position in range(9)]
    rows = {"0": kept[0], "1": kept[0], "3": kept[3], "4": kept[3], "7": kept[7]}
    columns = {"3": kept[0], "7": flat, "9": kept[7]}
    layer, _, part = name.partition(".")
    if layer in rows:
        tensor = tensor[rows[layer]]
    return tensor[:, columns[layer]] if layer in columns and part == "weight" else tensor


WHOLE = {0: list(range(5)), 3: list(range(4)), 7: list(range(6))}
ROUNDS = [
    ({0: [1, 4], 7: [0, 2, 3]}, {**WHOLE, 0: [0, 2, 3], 7: [1, 4, 5]}),
    ({3: [3]}, {0: [0, 2, 3], 3: [0, 1, 2], 7: [1, 4, 5]}),
    ({0: [1], 3: [0], 7: [2]}, {0: [0, 3], 3: [1, 2], 7: [1, 4]}),
]
"""What to remove, by the numbers of that round, and what is left, by the original numbers."""


def step(full, sliced, kept, stream, without=()):
    """One step of both with the same random gradients; none for the parameters ``without``."""
    few = dict(sliced[0].named_parameters())
    for name, parameter in full[0].named_parameters():
        gradient = torch.randn(parameter.shape, dtype=parameter.dtype, generator=stream)
        absent = name in without
        parameter.grad = None if absent else gradient
        few[name].grad = None if absent else picked(name, gradient, kept).clone()
    full[1].step()
    sliced[1].step()


def compare(full, sliced, kept):
    few = dict(sliced[0].named_parameters())
    for name, parameter in full[0].named_parameters():
        assert_near(few[name].detach(), picked(name, parameter.detach(), kept))
        expected, actual = (
            optimizer.state.get(mine, {})
            for optimizer, mine in ((full[1], parameter), (sliced[1], few[name]))
        )
        assert actual.keys() == expected.keys()
        for key, value in expected.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                value = picked(name, value, kept)
            assert_near(torch.as_tensor(actual[key]), torch.as_tensor(value))


def assert_near(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def check_rounds(make, steps_before, without=()):
    """Train, then prune and step in turns: kept weights and state are always the full copy's."""
    stream = torch.Generator().manual_seed(7)
    model = network()
    full = model, make(model)
    sliced = copy.deepcopy(full)
    for _ in range(steps_before):
        step(full, sliced, WHOLE, stream, without)
    pruner = Pruner(sliced[0], (2, 5, 5), "cpu", sliced[1])
    for cuts, kept in ROUNDS:
        for layer, units in cuts.items():
            pruner.prune_model(sliced[0][layer], units)
        compare(full, sliced, kept)
        for _ in range(2):
            step(full, sliced, kept, stream, without)
            compare(full, sliced, kept)
    assert sliced[0][7].weight.shape == (2, 18)


def made(kind, options):
    options = {"lr": 0.05, **options}
    if options["lr"] == "tensor":
        options["lr"] = torch.tensor(0.05, dtype=torch.float64)
    return lambda model: kind(model.parameters(), **options)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("steps_before", [0, 3])
def test_steps_after_pruning_are_the_unpruned_copys(case, steps_before):
    check_rounds(made(*CASES[case]), steps_before)


@pytest.mark.parametrize("kind", SLICED, ids=lambda kind: kind.__name__)
def test_parameters_that_were_never_stepped(kind):
    check_rounds(made(kind, {}), 2, without=("0.bias", "3.weight", "7.weight"))


@pytest.mark.parametrize("kind", SLICED, ids=lambda kind: kind.__name__)
def test_groups_a_scheduler_and_parameters_without_an_optimizer(kind):
    def make(model):
        slow = {"params": model[0].parameters(), "lr": 0.01}
        fast = {"params": [*model[1].parameters(), *model[7:].parameters()], "lr": 0.1}
        optimizer = kind([slow, fast])
        optim.lr_scheduler.StepLR(optimizer, 1)  # it wraps the step
        return optimizer

    check_rounds(make, 2)
    model = network()
    optimizer = make(model)
    Pruner(model, (2, 5, 5), "cpu", optimizer).prune_model(model[0], [0])
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.1]
    assert optimizer.param_groups[0]["params"][0] is model[0].weight


def forgotten(optimizer, parameter, shape, selected):
    """The next cut already refuses such a state."""


def restarted(optimizer, parameter, shape, selected):
    if optimizer is None:  # a cut on trial
        return
    for key, value in optimizer.state.get(parameter, {}).items():
        if value is not None and value.shape == shape:
            optimizer.state[parameter][key] = torch.zeros_like(parameter)


def other_units(optimizer, parameter, shape, selected):
    if optimizer is None:
        return
    for key, value in optimizer.state.get(parameter, {}).items():
        if value is not None and value.shape == shape:
            first = tuple(slice(length) for length in selected(value).shape)
            optimizer.state[parameter][key] = value[first].clone()


@pytest.mark.parametrize("mistake", [forgotten, restarted, other_units])
@pytest.mark.parametrize("kind", SLICED, ids=lambda kind: kind.__name__)
def test_the_oracle_notices_mistakes(kind, mistake, monkeypatch):
    options = {"momentum": 0.9} if kind is optim.SGD else {}
    check_rounds(made(kind, options), 3)
    monkeypatch.setattr("pruning_lab.pruner.slicing.slice_state", mistake)
    with pytest.raises((AssertionError, RuntimeError, ValueError)):
        check_rounds(made(kind, options), 3)


class OwnStep(optim.SGD):
    """Mixes the weights: a step of unit length."""

    def step(self, closure=None):
        parameters = [each for group in self.param_groups for each in group["params"]]
        norm = torch.stack([each.grad.norm() for each in parameters if each.grad is not None])
        with torch.no_grad():
            for each in parameters:
                each.sub_(each.grad / norm.norm())


class OwnGradients(optim.SGD):
    def _init_group(self, group, params, grads, *others):
        sparse = super()._init_group(group, params, grads, *others)
        grads[:] = [each / each.norm() for each in grads]
        return sparse


class OwnDefaults(optim.SGD):
    def __init__(self, params):
        super().__init__(params, lr=0.1, momentum=0.9)


class Unknown(optim.Optimizer):
    def __init__(self, params):
        super().__init__(params, {})

    def step(self, closure=None):
        return None


def matrices(model):
    return [each for each in model.parameters() if each.ndim == 2]


def patched(model):
    optimizer = optim.SGD(model.parameters())
    optimizer.step = types.MethodType(OwnStep.step, optimizer)
    return optimizer


def with_state(value):
    """An optimizer that has one more entry of state, for a weight that is not even sliced."""

    def make(model):
        optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        optimizer.state[model[9].bias]["more"] = value
        return optimizer

    return make


REFUSALS = {
    **{
        name: (lambda model, name=name: getattr(optim, name)(matrices(model)), reason)
        for name, reason in REFUSED.items()
        if hasattr(optim, name)
    },
    "heir": (
        lambda model: type("Heir", (optim.LBFGS,), {})(model.parameters()),
        "Heir cannot be handled: its history",
    ),
    "unknown": (lambda model: Unknown(model.parameters()), "Unknown .* is not known to update"),
    "own step": (lambda model: OwnStep(model.parameters()), "OwnStep .* another way than SGD"),
    "own gradients": (lambda model: OwnGradients(model.parameters()), "OwnGradients .* than SGD"),
    "patched step": (patched, "SGD cannot be handled: .* another way than SGD"),
    "differentiable": (
        lambda model: optim.Adam([{"params": model.parameters(), "differentiable": True}]),
        "Adam .* graph, which slicing would cut",
    ),
    "other shape": (with_state(torch.ones(2)), r"'more' is neither .*: \(2,\) instead of \(3,\)"),
    "nested": (with_state([torch.ones(3)]), "'more' is neither a number .* list instead"),
}


def bytes_of(model, optimizer):
    gradients = [each.grad for each in model.parameters()]
    content = model.state_dict(), gradients, repr(model), optimizer.state_dict()
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_says_why_and_what_to_do_and_changes_nothing(case):
    make, reason = REFUSALS[case]
    model = network()
    optimizer = make(model)
    x = torch.randn(8, 2, 5, 5, dtype=torch.float64)
    loss = model(x).square().mean()
    loss.backward()
    if case not in ("SparseAdam", "differentiable"):  # these cannot take such a step at all
        optimizer.step(lambda: loss)
    before, objects = bytes_of(model, optimizer), list(model.parameters())
    pruner = Pruner(model, (2, 5, 5), "cpu", optimizer)
    with pytest.raises(ValueError, match=f"{reason}.*Use torch's ASGD,.* without an optimizer"):
        pruner.prune_model(model[0], [0])
    assert bytes_of(model, optimizer) == before
    assert all(new is old for new, old in zip(model.parameters(), objects, strict=True))
    assert pruner.kept == {}
    Pruner(model, (2, 5, 5), "cpu").prune_model(model[0], [0])  # the advice
    assert bytes_of(model, optimizer) != before


@pytest.mark.parametrize("value", [None, 3, torch.tensor([3.0])])
def test_entries_of_the_state_that_belong_to_no_weight_stay(value):
    """Checkpoints of older versions of torch have the first two."""
    model = network()
    optimizer = with_state(value)(model)
    Pruner(model, (2, 5, 5), "cpu", optimizer).prune_model(model[0], [0])
    assert model[0].out_channels == 4
    assert optimizer.state[model[9].bias]["more"] is value


def test_a_subclass_that_steps_like_its_base():
    check_rounds(lambda model: OwnDefaults(model.parameters()), 2)


def test_a_subclass_whose_step_torch_wrapped_before_its_bases(monkeypatch):
    """It does so if the subclass has an object before its base has one."""
    hooked = optim.Optimizer.profile_hook_step(optim.SGD.step)
    monkeypatch.setattr(OwnDefaults, "step", hooked, raising=False)
    check_rounds(lambda model: OwnDefaults(model.parameters()), 2)


def test_state_that_missed_an_earlier_cut_is_refused():
    model = network()
    optimizer = optim.Adam(model.parameters())
    model(torch.randn(8, 2, 5, 5, dtype=torch.float64)).sum().backward()
    optimizer.step()
    Pruner(model, (2, 5, 5), "cpu").prune_model(model[0], [0])
    pruner = Pruner(model, (2, 5, 5), "cpu", optimizer)
    with pytest.raises(ValueError, match=r"'exp_avg' is neither .* \(5, 2, 3, 3\) instead of"):
        pruner.prune_model(model[3], [0])
    assert model[3].out_channels == 4
