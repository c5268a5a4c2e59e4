"""What comes back from disk is what was saved, or a refusal that changes nothing."""

import copy
import pickle

import pytest
import torch
from torch import nn

from pruning_lab.errors import UserError
from pruning_lab.pruner import Pruner, saved_model
from pruning_lab.pruner.saved_model import load_pruned, load_state, save_pruned, save_state


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5),
        nn.Linear(6 * 16, 8), nn.ReLU(), nn.Linear(8, 3),
    )  # fmt: skip


def pruned(folder):
    model = network()
    pruner = Pruner(model, (1, 6, 6), "cpu")
    pruner.prune_model(model[0], [1, 4])
    pruner.prune_model(model[5], [0])
    pruner.prune_model(model[0], [0])
    save_pruned(model, folder, pruner.kept)
    return model


X = torch.linspace(-1, 1, 72).view(2, 1, 6, 6)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in one.items())


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pth"])
def test_a_state_dict_comes_back(name, tmp_path):
    path = tmp_path / "deep" / name
    if path.suffix == ".safetensors":
        save_state(network(), path)
    else:
        path.parent.mkdir()
        torch.save(network().state_dict(), path)
    model = network(seed=1)
    load_state(model, path)
    assert same(model.state_dict(), network().state_dict())


def test_tied_and_strided_tensors_come_back(tmp_path):
    def tied():
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        model[1].weight = model[0].weight
        return model

    model = tied()
    model[0].weight.data = model[0].weight.data.t()
    save_state(model, tmp_path / "w.safetensors")
    other = tied()
    load_state(other, tmp_path / "w.safetensors")
    assert same(other.state_dict(), model.state_dict())
    assert other[0].weight is other[1].weight


class Harm:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def write(content, path):
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, Harm):
        path.write_bytes(pickle.dumps(content, protocol=2))
    elif content is not None:
        torch.save(content, path)


STATE = network().state_dict()
BAD_FILES = {
    "missing": ("w.pt", None, "w.pt is not there; give the path"),
    "suffix": ("w.ckpt", STATE, r"is a \.safetensors, \.pt or \.pth file"),
    "damaged": ("w.safetensors", b"1234567890", "cannot be read: it is damaged"),
    "damaged pt": ("w.pt", b"1234567890", "cannot be read: it is damaged"),
    "objects": ("w.pt", network(), "holds other objects than tensors"),
    "nested": ("w.pt", {"model": STATE}, "holds no state dict"),
    "fewer keys": ("w.pt", {"0.weight": STATE["0.weight"]}, "0.bias"),
    "more keys": ("w.pt", dict(STATE, extra=torch.ones(1)), "extra"),
    "shape": (
        "w.pt", dict(STATE) | {"7.bias": torch.ones(5)},
        "w.pt does not fit the model: 7.bias is 5 there and 3 in the model. Is it of another model",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_file_that_does_not_fit_is_refused_and_changes_nothing(case, tmp_path):
    name, content, message = BAD_FILES[case]
    write(content, tmp_path / name)
    model = network(seed=1)
    with pytest.raises(UserError, match=message):
        load_state(model, tmp_path / name)
    assert same(model.state_dict(), network(seed=1).state_dict())


def test_a_pickle_is_not_run(tmp_path):
    write(Harm(tmp_path / "harm"), tmp_path / "w.pt")
    with pytest.raises(UserError, match="not loaded for safety"):
        load_state(network(), tmp_path / "w.pt")
    assert not (tmp_path / "harm").exists()


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    save_state(network(), path)
    before = path.read_bytes()

    def half(_state, temporary, _about):
        temporary.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(saved_model, "save_file", half)
    with pytest.raises(UserError, match=r"cannot be written: disk full\. Make room"):
        save_state(network(seed=1), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_pruned_model_comes_back_whole(tmp_path):
    model = pruned(tmp_path).eval()
    loaded = load_pruned(network(seed=1), tmp_path).eval()
    assert torch.equal(loaded(X), model(X))
    assert repr(loaded) == repr(model)  # widths and the rate of Dropout
    assert (loaded[0].out_channels, loaded[5].in_features, loaded[4].p) == (3, 48, 0.25)
    weight = loaded[0].weight
    Pruner(loaded, (1, 6, 6), "cpu").prune_model(loaded[0], [0])
    assert loaded[0].weight is weight
    assert loaded(X).shape == (2, 3)


def test_the_recipe_is_in_the_units_of_the_original(tmp_path):
    pruned(tmp_path)
    text = (tmp_path / "recipe.json").read_text()
    assert saved_model.json.loads(text)["kept"] == {"0": [2, 3, 5], "5": [1, 2, 3, 4, 5, 6, 7]}


def other_activation():
    model = network()
    model[0] = nn.Conv2d(1, 6, 3, bias=False)
    return model


def other_kind():
    model = network()
    model[1] = nn.InstanceNorm2d(6, affine=True, track_running_stats=True)
    return model


def narrower():
    model = network()
    model[5], model[7] = nn.Linear(96, 4), nn.Linear(4, 3)
    return model


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (other_activation, "0.bias"),
        (other_kind, "1 is BatchNorm2d there and InstanceNorm2d in the model"),
        (narrower, "5.weight is 7x48 there and 4x96 in the model"),
    ],
)
def test_a_pruned_model_of_another_architecture_is_refused(build, message, tmp_path):
    pruned(tmp_path)
    model = build()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UserError, match=message):
        load_pruned(model, tmp_path)
    assert same(model.state_dict(), before)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "recipe.json is not there"),
        ("{", "recipe.json is damaged"),
        ('{"version": 9}', "has version 9; this program reads version 2"),
        ('{"version": 2, "modules": {"0": {"p": "rm"}}}', "its modules have no widths"),
    ],
)
def test_a_bad_recipe_is_refused(text, message, tmp_path):
    pruned(tmp_path)
    recipe = tmp_path / "recipe.json"
    recipe.unlink() if text is None else recipe.write_text(text)
    model = network(seed=1)
    with pytest.raises(UserError, match=message):
        load_pruned(model, tmp_path)
    assert same(model.state_dict(), network(seed=1).state_dict())
