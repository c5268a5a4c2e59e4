"""A kept result is used only while all that it was seen to be computed from is as it was."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pruning_lab.provenance import inputs_read
from pruning_lab.provenance.inputs_read import Seen, look_at, watching


@pytest.fixture(autouse=True)
def _own_notes(monkeypatch, tmp_path):
    monkeypatch.setattr(inputs_read, "_files", {})
    monkeypatch.setattr(inputs_read, "_modules", {})
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
    files = {each for each in inputs_read.inputs() if not each.startswith("module ")}
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
    monkeypatch.setattr(inputs_read, "_modules", {})
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


def test_a_link_that_leads_elsewhere_is_a_change(tmp_path):
    for number in (1, 2):
        (tmp_path / f"v{number}.json").write_text(str(number))
    link = tmp_path / "s.json"
    link.symlink_to("v1.json")
    with watching():
        link.read_text()
    kept = Seen([]).by_now()
    link.unlink()
    link.symlink_to("v2.json")
    assert Seen([]).changed_since(kept) == "s.json has changed since"


def test_a_file_beside_a_module_is_found_there_from_any_folder(tmp_path, monkeypatch):
    (tmp_path / "project").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "project")
    (tmp_path / "project" / "beside_me.py").write_text("place = __file__\n")
    (tmp_path / "project" / "w.json").write_text("1")
    module = __import__("beside_me")
    with watching():
        (Path(module.place).parent / "w.json").read_text()
    kept = Seen([]).by_now()
    assert "beside beside_me: w.json" in kept["inputs"]
    (tmp_path / "w.json").write_text("1")  # what lies in the folder of work is another file
    (tmp_path / "project" / "w.json").write_text("2")
    assert Seen([]).changed_since(kept) == "beside beside_me: w.json has changed since"


def test_a_script_that_is_read_is_a_file(tmp_path):
    (tmp_path / "settings.py").write_text("width = 3")
    with watching():
        runpy.run_path("settings.py")
    assert "settings.py" in Seen([]).by_now()["inputs"]


class Silent(nn.Module):
    """Gives 0 before training, whatever its code does."""

    rate = 0.0

    def __init__(self):
        super().__init__()
        self.hidden, self.top = nn.Linear(4, 8), nn.Linear(8, 3)
        nn.init.zeros_(self.top.weight), nn.init.zeros_(self.top.bias)

    def forward(self, x):
        return self.top(nn.functional.dropout(self.hidden(x).relu(), self.rate, self.training))


def test_the_answer_tells_of_code_behind_zeros_and_of_training(monkeypatch):
    torch.manual_seed(0)
    model, x = Silent(), torch.randn(8, 4)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    kept = look_at(model, x).by_now()
    assert look_at(model, x).changed_since(kept) is None
    monkeypatch.setattr(Silent, "rate", 0.5)
    assert "gives other outputs" in look_at(model, x).changed_since(kept)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_the_fresh_networks_answer_tells_of_what_no_file_holds(monkeypatch):
    torch.manual_seed(0)
    model, x = Scaled(4, 3), torch.randn(2, 4)
    kept = look_at(model, x).by_now()
    assert look_at(model, x * (1 + 1e-6)).changed_since(kept) is None  # another machine's rounding
    monkeypatch.setattr(Scaled, "scale", 1.01)
    assert "gives other outputs" in look_at(model, x).changed_since(kept)


def test_results_that_do_not_say_are_not_used():
    assert Seen([]).changed_since(None) == "it does not say what it was computed from"


def test_how_the_program_was_started_is_no_input(monkeypatch):
    for name in ("__mp_main__", "__main__"):
        monkeypatch.setitem(sys.modules, name, sys.modules[__name__])
    assert not [each for each in inputs_read.inputs() if "__" in each]
