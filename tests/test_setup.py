"""From a configuration to objects: what they are told, and what is refused."""

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from pruning_lab import setup
from pruning_lab.datasets.splits import Splits
from pruning_lab.errors import UserError

SPLITS = Splits(None, None, None, None, num_classes=5, input_size=(2, 8, 8))


class Net(nn.Linear):
    """Asks for some of what the data set knows."""

    def __init__(self, num_classes, input_size, width=1):
        super().__init__(input_size[1] * width, num_classes)


class Fixed(nn.Linear):
    """Asks for nothing."""

    def __init__(self):
        super().__init__(3, 3)


def failing():
    raise ValueError("no luck today")


def config(name, **more):
    return OmegaConf.create({"_target_": f"{__name__}.{name}", **more})


def test_a_model_is_told_what_its_constructor_names():
    model = setup.build_model(config("Net", width=3), SPLITS)
    assert (model.in_features, model.out_features) == (24, 5)
    assert setup.build_model(config("Net", num_classes=9), SPLITS).out_features == 9
    assert setup.build_model(config("Fixed"), SPLITS).out_features == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"_target_": "???"}, "model._target_ is missing: name your class"),
        ({"_target_": "nowhere.Net"}, r"model._target_=nowhere.Net cannot be imported: .*nowhere"),
        ({"_target_": "collections.UserDict"}, "gives a UserDict, not an nn.Module"),
        ({"_target_": "torch.nn.Linear"}, "torch.nn.Linear cannot be built: .*in_features"),
        ({"_target_": "torch.nn.Identity.nothing"}, "cannot be imported"),
    ],
)
def test_a_model_that_cannot_be_built_is_explained(settings, message):
    with pytest.raises(UserError, match=message):
        setup.build_model(OmegaConf.create(settings), SPLITS)


def test_the_reason_of_a_failing_constructor_is_handed_on():
    with pytest.raises(UserError, match="failing cannot be built: no luck today"):
        setup.build(config("failing"))


def test_devices():
    assert setup.find_device("cpu") == torch.device("cpu")
    wanted = "cuda" if torch.cuda.is_available() else "cpu"
    assert setup.find_device("auto").type == wanted
    with pytest.raises(UserError, match=r"device=tpu9 is not to be had: .*Use auto or cpu"):
        setup.find_device("tpu9")


def test_where_the_data_lies_does_not_name_the_baseline():
    def determinants(**dataset):
        return setup.baseline_determinants(
            OmegaConf.create({
                "model": {"depth": 16}, "dataset": {"_target_": "x", "score": 3, **dataset},
                "baseline": {"checkpoint": None, "training": {"epochs": 1}},
                "seeds": {"init": 0, "order": 0, "score": 0},
            }),
            torch.device("cpu"),
        )  # fmt: skip

    assert determinants(root="a", download=True) == determinants(root="b", download=False)
    assert determinants(score=4) != determinants()
    assert "score" not in determinants()["seeds"]


def test_a_missing_checkpoint_is_said_before_the_work(tmp_path):
    settings = OmegaConf.create({
        "model": {}, "dataset": {}, "seeds": {"init": 0, "order": 0},
        "baseline": {"checkpoint": str(tmp_path / "no.pt"), "training": {}},
    })  # fmt: skip
    with pytest.raises(UserError, match=r"baseline.checkpoint=.*no.pt does not exist"):
        setup.baseline_determinants(settings, torch.device("cpu"))
