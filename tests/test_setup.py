"""From a configuration to objects: what they are told, and what is refused."""

from itertools import product

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

from pruning_lab import setup
from pruning_lab.attributions import ShapleyAttributionMetric
from pruning_lab.datasets.image_folder import image_folder
from pruning_lab.datasets.splits import Images, Splits
from pruning_lab.errors import UserError
from pruning_lab.setup import digest_of_program

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


def failing():
    raise ValueError("no luck today")


def config(name, **more):
    return OmegaConf.create({"_target_": f"{__name__}.{name}", **more})


def test_a_model_is_told_what_its_constructor_names():
    assert setup.build_model(config("Net", width=3), SPLITS).told == (5, (2, 8, 8), 3)
    assert setup.build_model(config("Net", num_classes=9), SPLITS).told == (9, (2, 8, 8), 1)
    assert setup.build_model(config("Fixed"), SPLITS).told == (5, None, 1)


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
        setup.build_model(OmegaConf.create(settings), SPLITS)


def test_the_reason_of_a_failing_constructor_is_handed_on():
    with pytest.raises(UserError, match="failing cannot be built: no luck today"):
        setup.build(config("failing"))


def test_devices():
    assert setup.find_device("cpu") == torch.device("cpu")
    wanted = "cuda" if torch.cuda.is_available() else "cpu"
    assert setup.find_device("auto").type == wanted
    with pytest.raises(UserError, match=r"device=tpu9 is not to be had here. Use auto or cpu"):
        setup.find_device("tpu9")
    with pytest.raises(UserError, match=r"device=meta is not to be had here"):
        setup.find_device("meta")


def images(value):
    return Images(
        torch.full((4, 1, 2, 2), value, dtype=torch.uint8), torch.arange(4), (0.0,), (1.0,)
    )


def determinants(model=None, value=1, checkpoint=None, **dataset):
    settings = OmegaConf.create({
        "model": {"depth": 16}, "dataset": {"_target_": "x", "score": 3, **dataset},
        "baseline": {"checkpoint": checkpoint, "training": {"epochs": 1}},
        "seeds": {"init": 0, "order": 0, "score": 0},
    })  # fmt: skip
    splits = Splits(*[images(value)] * 4, num_classes=4, input_size=(1, 2, 2))
    return setup.baseline_determinants(settings, torch.device("cpu"), splits, model or Fixed())


def test_the_samples_name_the_baseline_and_not_where_they_lie():
    assert determinants(root="a", download=True) == determinants(root="b", download=False)
    assert determinants(value=2) != determinants()
    assert determinants(score=4) != determinants()
    assert "score" not in determinants()["seeds"]


def test_the_code_of_the_model_names_the_baseline(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for activation in ("ReLU", "Tanh"):
        path = tmp_path / f"net_{activation}.py"
        path.write_text(f"from torch import nn\nclass Net(nn.{activation}): pass\n")
        net = __import__(path.stem).Net()
        found += [determinants(model=model)["code"] for model in (net, torch.nn.Sequential(net))]
    assert len(set(found)) == 4


def test_other_pictures_in_a_folder_are_other_samples(tmp_path):
    prints = []
    for root, size in (("a", 16), ("b", 16), ("c", 17)):
        for folder, label in product(("train", "test"), ("ape", "bee")):
            place = tmp_path / root / folder / label
            place.mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (size, 20)).save(place / f"{number}.bmp")
        prints.append(image_folder(str(tmp_path / root), size=8, score=2, val=2).fingerprint())
    assert prints[0] == prints[1] != prints[2]


def test_a_missing_checkpoint_is_said_before_the_work(tmp_path):
    with pytest.raises(UserError, match=r"baseline.checkpoint=.*no.pt is not a file"):
        determinants(checkpoint=str(tmp_path / "no.pt"))


@pytest.mark.parametrize(
    ("changed", "matters"),
    [
        ("pruning_lab.attributions.shapley", True),
        ("pruning_lab.attributions.stopping", True),
        ("pruning_lab.graph.small_maps", True),
        ("pruning_lab.graph.rules.moves", True),
        ("pruning_lab.attributions.taylor", False),
        ("pruning_lab.tracking", False),
    ],
)
def test_scores_are_named_by_all_the_code_that_they_depend_on(changed, matters, monkeypatch):
    before, own = digest_of_program(ShapleyAttributionMetric), setup._source

    def edited(name):
        return own(name) + "# edited" if name == changed else own(name)

    monkeypatch.setattr(setup, "_source", edited)
    assert (digest_of_program(ShapleyAttributionMetric) != before) == matters


class Derived(ShapleyAttributionMetric):
    """A user's criterion."""


def test_a_users_criterion_is_named_by_its_own_file_and_those_it_derives_from(monkeypatch):
    before, own = digest_of_program(Derived), setup._source
    for changed in (__name__, "pruning_lab.attributions.shapley"):

        def edited(name, changed=changed):
            return own(name) + "# edited" if name == changed else own(name)

        monkeypatch.setattr(setup, "_source", edited)
        assert digest_of_program(Derived) != before
