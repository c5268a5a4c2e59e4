"""What determines a result names it; what does not leaves the name alone."""

from itertools import product

import pytest
import torch
from PIL import Image
from torch import nn

from pruning_lab import identity
from pruning_lab.attributions import ShapleyAttributionMetric
from pruning_lab.datasets.image_folder import image_folder
from pruning_lab.datasets.splits import Images, Splits
from pruning_lab.errors import UserError
from pruning_lab.identity import digest_of_program


class Fixed(nn.Module):
    """A model."""


def images(value):
    return Images(
        torch.full((4, 1, 2, 2), value, dtype=torch.uint8), torch.arange(4), (0.0,), (1.0,)
    )


def determinants(model=None, value=1, checkpoint=None, **dataset):
    settings = {
        "model": {"depth": 16}, "dataset": {"_target_": "x", "score": 3, **dataset},
        "baseline": {"checkpoint": checkpoint, "training": {"epochs": 1}},
        "seeds": {"init": 0, "order": 0, "score": 0},
    }  # fmt: skip
    splits = Splits(*[images(value)] * 4, num_classes=4, input_size=(1, 2, 2))
    return identity.baseline_determinants(
        identity.start_determinants(settings, splits.fingerprint(), torch.device("cpu"), 1),
        model or Fixed(),
    )


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
    before, own = digest_of_program.__wrapped__(ShapleyAttributionMetric), identity._source

    def edited(name):
        return own(name) + "# edited" if name == changed else own(name)

    monkeypatch.setattr(identity, "_source", edited)
    assert (digest_of_program.__wrapped__(ShapleyAttributionMetric) != before) == matters


class Derived(ShapleyAttributionMetric):
    """A user's criterion."""


def test_a_users_criterion_is_named_by_its_own_file_and_those_it_derives_from(monkeypatch):
    before, own = digest_of_program.__wrapped__(Derived), identity._source
    for changed in (__name__, "pruning_lab.attributions.shapley"):

        def edited(name, changed=changed):
            return own(name) + "# edited" if name == changed else own(name)

        monkeypatch.setattr(identity, "_source", edited)
        assert digest_of_program.__wrapped__(Derived) != before
