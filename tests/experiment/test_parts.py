"""From a configuration to objects: what they are told, and what is refused."""

import pytest
import torch
from omegaconf import ListConfig, OmegaConf
from torch import nn

from pruning_lab.config.build import build
from pruning_lab.datasets.splits import Splits
from pruning_lab.errors import UserError
from pruning_lab.experiment.parts import build_model
from pruning_lab.runtime.device import find_device, spread
from pruning_lab.tasks import Classification

TASK = Classification()
SPLITS = Splits(None, None, None, None, num_classes=5, input_size=(2, 8, 8))


class Net(nn.Module):
    """Asks for some of what the data set knows."""

    def __init__(self, num_classes, input_size, width=1):
        super().__init__()
        self.told = (num_classes, input_size, width)

    def forward(self, x):
        return x.new_zeros(len(x), 5)


class Fixed(Net):
    """Asks for nothing."""

    def __init__(self):
        super().__init__(5, None)


class Given:
    """Keeps what it was given."""

    def __init__(self, inner=None, **given):
        self.inner, self.given = inner, given


def failing():
    raise ValueError("no luck today")


def config(name, **more):
    return OmegaConf.create({"_target_": f"{__name__}.{name}", **more})


def test_a_model_is_told_what_its_constructor_names():
    assert build_model(config("Net", width=3), SPLITS, TASK).told == (5, (2, 8, 8), 3)
    assert build_model(config("Net", num_classes=9), SPLITS, TASK).told == (9, (2, 8, 8), 1)
    assert build_model(config("Fixed"), SPLITS, TASK).told == (5, None, 1)


class Drawing(Fixed):
    """Draws at random in eval mode, too."""

    def forward(self, x):
        return torch.rand(len(x), 5)


class Linear(Fixed):
    def __init__(self):
        super().__init__()
        self.top = nn.Linear(128, 5)

    def forward(self, x):
        return self.top(x.flatten(1))


class Squeezed(Linear):
    def forward(self, x):
        return super().forward(x).squeeze()


class InTurn(Linear):
    def forward(self, x):
        return super().forward(x).flip(0)


class Centred(Linear):
    def forward(self, x):
        return super().forward(x - 0.1 * x.mean(0))


class BatchStatistics(Linear):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(2, track_running_stats=False)

    def forward(self, x):
        return super().forward(self.norm(x))


class Probabilities(Linear):
    def forward(self, x):
        return super().forward(x).softmax(1)


class MadeLate(Linear):
    def forward(self, x):
        if not hasattr(self, "late"):
            self.late = nn.Linear(5, 5)
        return self.late(super().forward(x))


class Wants(Linear):
    def __init__(self, channels, classes):
        super().__init__()


MIXED = "output for an image depends on the others in its batch"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Squeezed", r"For one image the model gives \(5,\); .* \(1, 5\), .*flatten\(1\)"),
        ("InTurn", MIXED),
        ("Centred", MIXED),
        ("BatchStatistics", rf"{MIXED}.*track_running_stats=False"),
        ("Probabilities", "gives probabilities: .* takes the softmax itself"),
        ("MadeLate", r"in its forward \(late.bias, late.weight\): .*Make them in __init__"),
        ("Wants", r"missing 2 .*is given num_classes, in_channels, input_size as far as it names"),
    ],
)
def test_a_model_that_cannot_be_trained_as_a_classifier_is_refused(name, message):
    with pytest.raises(UserError, match=message):
        build_model(config(name), SPLITS, TASK)


class Rounding(Fixed):
    """Gives a lone image what it gives it among others, up to rounding."""

    def forward(self, x):
        return super().forward(x) + 1 + 1e-6 * len(x)


@pytest.mark.parametrize("name", ["Drawing", "Rounding"])
def test_outputs_are_checked_up_to_rounding_and_what_is_drawn(name):
    torch.manual_seed(0)
    build_model(config(name), SPLITS, TASK)
    drawn = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(3))  # checking draws nothing


def kinds(value):
    """The types of a container and of all in it."""
    if isinstance(value, dict):
        return dict, {key: kinds(inner) for key, inner in value.items()}
    return (list, [kinds(inner) for inner in value]) if type(value) is list else type(value)


def test_lists_and_mappings_arrive_as_pythons_own():
    given = {"widths": [32, [16, 0.5]], "options": {"depth": {"a": [1, "x"]}, "none": None}}
    told = {"size": (1, 8, 8)}
    made = build(config("Given", inner=config("Given", **given), **given), "g", Given, **told)
    for each, expected in ((made, given | told), (made.inner, given)):
        assert each.given == expected
        assert kinds(each.given) == kinds(expected)
    partial = build(config("Given", _partial_=True, **given), "g")
    assert partial().given == given
    assert kinds(partial().given) == kinds(given)
    kept = build(config("Given", _convert_="none", **given), "g")
    assert isinstance(kept.given["widths"], ListConfig)  # where it is asked for


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"_target_": "???"}, "model._target_ is missing: name your class"),
        ({"_target_": "nowhere.Net"}, r"model._target_=nowhere.Net cannot be imported: .*nowhere"),
        ({"_target_": "collections.UserDict"}, "gives a UserDict, not a Module"),
        ({"_target_": "torch.nn.Linear"}, "torch.nn.Linear cannot be built: .*in_features"),
        ({"_target_": "torch.nn.Identity.nothing"}, "cannot be imported"),
    ],
)
def test_a_model_that_cannot_be_built_is_explained(settings, message):
    with pytest.raises(UserError, match=message):
        build_model(OmegaConf.create(settings), SPLITS, TASK)


def test_a_setting_that_nothing_takes_is_named_with_those_that_are():
    settings = OmegaConf.create(
        {"_target_": "pruning_lab.pruning.schedules.LayerByLayer", "target": 0.8}
    )
    named = r"schedule.target is not a setting of LayerByLayer, which has coupled, .*share\."
    with pytest.raises(UserError, match=named):
        build(settings, "schedule")


def test_the_reason_of_a_failing_constructor_is_handed_on():
    with pytest.raises(UserError, match="failing cannot be built: no luck today"):
        build(config("failing"))


def test_devices():
    assert find_device("cpu") == torch.device("cpu")
    assert find_device("auto").type == "cpu"  # with a GPU: tests/test_gpu.py
    with pytest.raises(
        UserError, match=r"device=tpu9 is not available on this machine. Use auto or cpu"
    ):
        find_device("tpu9")
    with pytest.raises(UserError, match=r"device=meta is not available on this machine"):
        find_device("meta")


@pytest.mark.parametrize(
    ("device", "count", "found"),
    [
        ("auto", 4, ["cuda:0", "cuda:1", "cuda:2", "cuda:3", "cuda:0"]),
        ("auto", 1, ["auto"] * 5),
        ("auto", 0, ["auto"] * 5),
        ("cuda:1", 4, ["cuda:1"] * 5),
        ("cpu", 4, ["cpu"] * 5),
    ],
)
def test_jobs_of_a_sweep_get_the_gpus_in_turn(device, count, found, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert [spread(device, job) for job in range(5)] == found
