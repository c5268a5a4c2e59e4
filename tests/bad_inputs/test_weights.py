"""Files with weights that are damaged, not safe or another model's."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from pruning_lab.pruner.saved_model import load_pruned, load_state, save_pruned
from tests.bad_inputs.attempts import check_refused


class Harm:
    def __reduce__(self):
        return Path.touch, (Path("harm"),)


def weights(name, content):
    """Load a file of this name and content into a small layer."""

    def attempt(root):
        path = root / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is None:
            path.mkdir()
        else:
            torch.save(content, path)
        load_state(nn.Linear(2, 2), path)

    return attempt


def layer(**other):
    return {"weight": torch.ones(2, 2), "bias": torch.zeros(2)} | other


def pruned(change):
    """Load a pruned layer into another after ``change`` was made to its folder."""

    def attempt(root):
        save_pruned(nn.Sequential(nn.Linear(2, 3)), root, {"0": [0, 1, 2]})
        model = change(root) or nn.Sequential(nn.Linear(2, 3))
        load_pruned(model, root)

    return attempt


WEIGHTS = {
    "empty": (weights("w.pt", b""), "w.pt cannot be read: it is damaged"),
    "empty safetensors": (weights("w.safetensors", b""), "w.safetensors cannot be read: it is dam"),
    "a folder": (weights("w.pt", None), "w.pt is not there; give the path of a file"),
    "code": (weights("w.pth", pickle.dumps(Harm(), protocol=2)), "not loaded for safety"),
    "a list": (weights("w.pt", [torch.ones(2)]), "w.pt holds no state dict"),
    "NaN": (
        weights("w.pt", layer(weight=torch.full((2, 2), float("nan")))),
        r"w.pt holds NaN in 1 keys \(weight\): training diverged before it was saved",
    ),
    "whole numbers": (
        weights("w.pt", layer(weight=torch.ones(2, 2).long())),
        "weight is torch.int64 there and torch.float32 in the model",
    ),
    "complex numbers": (
        weights("w.pt", layer(bias=torch.zeros(2, dtype=torch.complex64))), "bias is torch.complex",
    ),
    "a pruned model nowhere": (
        lambda root: load_pruned(nn.Linear(2, 2), root / "no"), "model.safetensors is not there",
    ),
    "a pruned model in a file": (
        lambda root: load_pruned(nn.Linear(2, 2), "/etc/passwd"), "model.safetensors is not there",
    ),
    "tensors cut short": (
        pruned(lambda root: os.truncate(root / "model.safetensors", 20)), "cannot be read: it is",
    ),
    "a recipe that is a list": (
        pruned(lambda root: (root / "recipe.json").write_text("[]") and None), "has version None",
    ),
    "a recipe of another model": (
        pruned(lambda root: nn.Sequential(nn.Linear(2, 2))), "0.weight is 3x2 there and 2x2 in the",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_that_cannot_be_loaded(case, tmp_path, monkeypatch):
    check_refused(WEIGHTS[case], tmp_path, monkeypatch)
