"""A kept result is used only while all that it was seen to be computed from is as it was."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

from pruning_lab import observed
from pruning_lab.observed import Seen, look_at, watching


@pytest.fixture(autouse=True)
def _own_notes(monkeypatch, tmp_path):
    monkeypatch.setattr(observed, "_files", {})
    monkeypatch.setattr(observed, "_modules", {})
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


def test_files_read_inside_are_noted_by_content_and_relative_to_the_folder(tmp_path):
    (tmp_path / "weights.pt").write_bytes(b"")
    torch.save(torch.ones(3), tmp_path / "weights.pt")
    np.save(tmp_path / "scale.npy", np.ones(2))
    (tmp_path / "outside.txt").write_text("never")
    with watching():
        torch.load("weights.pt", weights_only=True)
        np.load("scale.npy")
        (tmp_path / "written.txt").write_text("an output is no input")
    (tmp_path / "outside.txt").read_text()
    files = {each for each in observed.inputs() if not each.startswith("module ")}
    assert files == {"weights.pt", "scale.npy"}


@pytest.mark.parametrize("how", ["changed", "gone"])
def test_a_change_of_a_file_is_told(tmp_path, how):
    (tmp_path / "widths.json").write_text("[3]")
    with watching():
        (tmp_path / "widths.json").read_text()
    kept = Seen([]).by_now()
    assert Seen([]).changed_since(kept) is None
    if how == "changed":
        (tmp_path / "widths.json").write_text("[4]")
    else:
        (tmp_path / "widths.json").unlink()
    said = {"changed": "has changed since", "gone": "is not there any more"}[how]
    assert Seen([]).changed_since(kept) == f"widths.json {said}"


def test_a_module_under_a_computed_name_is_noted_by_its_name(tmp_path, monkeypatch):
    """The process that asks later has not imported it."""
    (tmp_path / "late_blocks.py").write_text("width = 3\n")
    __import__("late_" + "blocks")
    kept = Seen([]).by_now()
    assert "module late_blocks" in kept["inputs"]
    monkeypatch.setattr(observed, "_modules", {})
    monkeypatch.delitem(sys.modules, "late_blocks")
    assert Seen([]).changed_since(kept) is None
    (tmp_path / "late_blocks.py").write_text("width = 4\n")
    assert Seen([]).changed_since(kept) == "module late_blocks has changed since"


def test_a_project_elsewhere_is_the_same(tmp_path, monkeypatch):
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "table.txt").write_text("1 2 3")
    monkeypatch.chdir(tmp_path / "here")
    with watching():
        (tmp_path / "here" / "table.txt").read_text()
    kept = Seen([]).by_now()
    monkeypatch.chdir(tmp_path / "there")
    assert Seen([]).changed_since(kept) is None


class Scaled(nn.Linear):
    scale = 1.0

    def forward(self, x):
        return self.scale * super().forward(x)


def test_the_fresh_networks_answer_tells_of_what_no_file_holds(monkeypatch):
    torch.manual_seed(0)
    model, x = Scaled(4, 3), torch.randn(2, 4)
    kept = look_at(model, x).by_now()
    assert look_at(model, x * (1 + 1e-6)).changed_since(kept) is None  # another machine's rounding
    monkeypatch.setattr(Scaled, "scale", 1.01)
    assert "gives other outputs" in look_at(model, x).changed_since(kept)


def test_results_that_do_not_say_are_not_used():
    assert Seen([]).changed_since(None) == "it does not say what it was computed from"
