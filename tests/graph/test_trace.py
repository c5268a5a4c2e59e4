"""Who must follow when units go, where activations are read, and what is refused."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pruning_lab.graph import UntraceableError, trace


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


class Residual(nn.Module):
    """One convolution inside a block may lose units, the stream may not."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.inner = nn.Conv2d(4, 6, 3, padding=1)
        self.outer = nn.Conv2d(6, 4, 3, padding=1)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.outer(F.relu(self.inner(x)))
        return self.head(x.mean((2, 3)))


def followers(model, layer):
    return [(f.name, f.positions) for f in trace(model).followers(layer)]


def test_batchnorm_dropout_and_the_next_layer_follow():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout2d(), nn.Conv2d(4, 2, 3)
    )
    assert followers(model, model[0]) == [("1", 1), ("3", 1), ("4", 1)]


def test_behind_a_flatten_a_unit_owns_as_many_inputs_as_it_had_positions():
    model = nn.Sequential(
        nn.Conv2d(1, 3, 2), nn.Flatten(), nn.BatchNorm1d(12), nn.Dropout(), nn.Linear(12, 1)
    )
    assert followers(model, model[0]) == [("2", 4), ("3", 1), ("4", 4)]


def test_functional_calls_are_followed_too():
    model = Functional()
    assert followers(model, model.conv) == [("fc1", 9)]
    assert followers(model, model.fc1) == [("fc2", 1)]
    assert list(trace(model).layers()) == ["conv", "fc1"]


def test_transposed_convolutions_are_layers_and_readers():
    model = nn.Sequential(nn.ConvTranspose2d(1, 4, 2), nn.ReLU(), nn.ConvTranspose2d(4, 1, 2))
    assert followers(model, model[0]) == [("2", 1)]


def test_only_the_inside_of_a_residual_block_may_lose_units():
    graph = trace(Residual())
    assert list(graph.layers()) == ["inner"]
    reasons = graph.frozen()
    assert "its units meet `add`" in reasons["stem"]
    assert "its units meet `add`" in reasons["outer"]
    assert "the caller of the model sees its output" in reasons["head"]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Sequential(nn.Conv2d(2, 4, 1, groups=2), nn.Conv2d(4, 1, 1)), "a grouped convolution"),
        (nn.Sequential(nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1, groups=2)), "grouped convolution"),
        (nn.Sequential(nn.Linear(2, 4), nn.Softmax(-1), nn.Linear(4, 1)), "meet `Softmax`"),
        (nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4), nn.Linear(4, 1)), "meet `LayerNorm`"),
        (nn.Sequential(nn.Linear(2, 4), nn.MaxPool1d(2), nn.Linear(2, 1)), "meet `MaxPool1d`"),
        (nn.Sequential(nn.Conv2d(1, 4, 1), nn.Linear(5, 1)), "reads them along another dimension"),
        (
            nn.Sequential(nn.Linear(2, 4), nn.Flatten(), nn.Linear(6, 1)),
            "not a multiple of 4",
        ),
        (nn.Sequential(nn.Linear(2, 4)), "the caller of the model sees its output"),
    ],
)
def test_what_cannot_be_followed_is_refused_with_its_reason(model, reason):
    with pytest.raises(ValueError, match=f"layer '0' cannot be removed.*{reason}"):
        trace(model).followers(model[0])


def test_a_module_that_runs_twice_is_refused():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(nn.Linear(2, 4), shared, shared, nn.Linear(4, 1))
    with pytest.raises(ValueError, match="layer '1' cannot be removed: it runs 2 times"):
        trace(model).followers(model[0])


def test_modules_without_units_or_from_elsewhere_are_refused():
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
    with pytest.raises(ValueError, match="ReLU has no units"):
        trace(model).followers(model[1])
    with pytest.raises(ValueError, match="not part of the model"):
        trace(model).followers(nn.Linear(2, 4))


def test_the_site_behind_a_layer_is_the_last_of_batchnorm_and_non_linearity():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 2, 3)
    )
    graph = trace(model)
    assert graph.site(model[0]).target == "0"
    assert graph.site(model[0], behind=True).target == "2"
    assert graph.site(model[4], behind=True).target == "4"


def test_the_site_behind_a_layer_may_be_a_function():
    model = Functional()
    assert trace(model).site(model.conv, behind=True).target is F.relu
    assert trace(model).site(model.fc1, behind=True).target is torch.tanh


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
    trace(model).layers()
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())


@pytest.mark.parametrize("reader", [[nn.Flatten(), nn.Linear(18, 2)], [nn.BatchNorm1d(18)]])
def test_units_of_a_linear_that_lie_between_tokens_are_refused(reader):
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), *reader)
    with pytest.raises(ValueError, match="reads them mixed with another dimension"):
        trace(model).followers(model[0])
