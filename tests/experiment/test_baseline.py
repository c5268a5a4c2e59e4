"""A baseline is named by what determines it, and made once."""

import time

import numpy as np
import pytest
import torch
from torch import nn

from pruning_lab.attributions.estimation.reduction import Estimate
from pruning_lab.errors import UserError
from pruning_lab.experiment.baseline import Baseline
from pruning_lab.experiment.fingerprint import identity
from pruning_lab.profiling.passes import ScoringCost
from pruning_lab.provenance.inputs_read import Seen, _digest
from tests.running import in_processes

SEEN = Seen([])


def test_the_name_of_a_baseline_is_pinned_and_ignores_the_order_of_keys():
    assert identity({"a": 1, "b": [2, "x"]}) == identity({"b": [2, "x"], "a": 1}) == "454597f51f0e"
    assert identity({"a": 1, "b": [2, "y"]}) != identity({"a": 1, "b": [2, "x"]})


def trained(model, epochs):
    with torch.no_grad():
        model.weight.fill_(3)


def test_it_is_trained_once_and_found_again(tmp_path):
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    assert Baseline(tmp_path, {"seed": 0}, SEEN, SEEN).obtain(first, trained)
    assert not Baseline(tmp_path, {"seed": 0}, SEEN, SEEN).obtain(
        second, lambda *_: pytest.fail("again")
    )
    assert second.weight.tolist() == [[3, 3], [3, 3]]
    assert Baseline(tmp_path, {"seed": 1}, SEEN, SEEN).obtain(nn.Linear(2, 2), trained)


def test_a_failed_training_leaves_nothing_behind(tmp_path):
    def fail(model, epochs):
        raise RuntimeError("power cut")

    baseline = Baseline(tmp_path, {}, SEEN, SEEN)
    with pytest.raises(RuntimeError, match="power cut"):
        baseline.obtain(nn.Linear(2, 2), fail)
    assert baseline.obtain(nn.Linear(2, 2), trained)


def train_and_count(folder):
    def train(model, epochs):
        with (folder / "count").open("a") as file:
            file.write("x")
        time.sleep(0.5)
        trained(model, epochs)

    Baseline(folder, {"seed": 0}, SEEN, SEEN).obtain(nn.Linear(2, 2), train)


def test_jobs_that_start_together_train_once(tmp_path):
    assert in_processes(3, train_and_count, tmp_path) == [0, 0, 0]
    assert (tmp_path / "count").read_text() == "x"


def test_scores_are_computed_once_for_each_setting(tmp_path):
    baseline, calls = Baseline(tmp_path, {}, SEEN, SEEN), []

    def score():
        calls.append(1)
        return {"features.0": Estimate(np.array([1.0, len(calls)]))}, ScoringCost(
            2.0, 1.0, seconds=2.5
        )

    for settings, last in (({"n": 1}, 1), ({"n": 1}, 1), ({"n": 2}, 2)):
        scores, cost = baseline.scores("taylor", settings, score)
        assert scores["features.0"].scores.tolist() == [1.0, last]
        assert cost == ScoringCost(2.0, 1.0, seconds=2.5)
    assert len(calls) == 2


@pytest.mark.parametrize("what", ["model.safetensors", "taylor-*.npz", "taylor-*.json"])
def test_a_damaged_file_says_what_to_delete(what, tmp_path):
    baseline = Baseline(tmp_path, {}, SEEN, SEEN)
    baseline.obtain(nn.Linear(2, 2), trained)

    def use():
        baseline.obtain(nn.Linear(2, 2), trained)
        baseline.scores("taylor", {}, lambda: ({"0": Estimate(np.ones(2))}, ScoringCost()))

    use()
    (path,) = baseline.folder.glob(what)
    path.write_bytes(b"half")
    with pytest.raises(UserError, match=rf"is damaged .*Delete {baseline.folder} and run again"):
        use()


def test_a_folder_that_cannot_be_written_is_explained(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"baseline.folder=.*file cannot be written"):
        Baseline(tmp_path / "file", {}, SEEN, SEEN).obtain(nn.Linear(2, 2), trained)


def test_another_state_has_a_folder_of_its_own_and_both_are_found_again(tmp_path):
    one, other = Seen([[1.0]], {}), Seen([[2.0]], {})
    folders = []
    for seen in (one, other, one, other):
        baseline = Baseline(tmp_path, {}, seen, seen)
        folders.append((baseline.name, baseline.obtain(nn.Linear(2, 2), trained)))
    first = identity({})
    assert folders == [(first, True), (f"{first}-1", True), (first, False), (f"{first}-1", False)]


def test_scores_are_made_again_when_what_they_read_has_changed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = tmp_path / "table.txt"
    calls = []

    def score():
        calls.append(1)
        return {"fc": Estimate(np.ones(2))}, ScoringCost(0.0, 0.0)

    for text in ("1", "1", "2"):
        table.write_text(text)
        seen = Seen([], {"table.txt": _digest("table.txt")})
        Baseline(tmp_path / "baselines", {}, SEEN, seen).scores("own", {}, score)
    assert len(calls) == 2


def test_a_long_name_of_a_criterion_names_a_file(tmp_path):
    baseline = Baseline(tmp_path, {}, SEEN, SEEN)
    for name in ("k" * 245, "k" * 246):
        baseline.scores(name, {}, lambda: ({"fc": Estimate(np.ones(2))}, ScoringCost(0.0, 0.0)))
    assert len(list(baseline.folder.glob("*.npz"))) == 2
