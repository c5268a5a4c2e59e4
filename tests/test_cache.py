"""What is kept is listed with its size, and nothing else is ever deleted."""

import os
import time

import pytest
from filelock import FileLock

from pruning_lab import cache
from pruning_lab.experiment import stages
from tests.running import two_steps


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A trained baseline, a run that failed, and a folder that is the user's own."""
    done = two_steps(tmp_path, "attributions=none")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "score_baseline", lambda *_: 1 / 0)  # it fails after the baseline
        with pytest.raises(ZeroDivisionError):
            done.run()
    (tmp_path / "baselines" / "mine").mkdir()
    (tmp_path / "baselines" / "mine" / "thesis.txt").write_text("dear")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(folder, kind):
    return [path.name for path in (folder / kind).iterdir() if path.is_dir()]


def test_the_list_says_what_is_kept_of_what_and_how_large_it_is(folder, capsys):
    (baseline,) = {*names(folder, "baselines")} - {"mine"}
    (run,) = names(folder, "checkpoints")
    assert cache.main([]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    found = cache.CacheEntry("baselines", folder / "baselines" / baseline)
    sizes = [path.stat().st_size for path in found.path.iterdir()]
    assert found.size == sum(sizes) > 1000
    size = f"{sum(sizes) / 1e6:.1f}"
    assert lines[1] == [baseline, "baselines", "MLP", "synthetic", "seed", "0", size, "0.0"]
    assert lines[2][:-2] == [run, "checkpoints", "mlp", "synthetic", "taylor", "seed", "0"]


def test_what_is_named_is_cleared_and_nothing_else(folder, capsys):
    (run,) = names(folder, "checkpoints")
    assert cache.main(["--clear", run]) == 0
    assert names(folder, "checkpoints") == []
    assert len(names(folder, "baselines")) == 2
    assert cache.main(["--clear", "baselines"]) == 0
    assert names(folder, "baselines") == ["mine"]
    assert cache.main([]) == 0
    assert capsys.readouterr().out.endswith("Nothing is kept here.\n")


def test_only_old_ones_are_cleared_where_that_is_asked(folder):
    (run,) = names(folder, "checkpoints")
    assert cache.main(["--clear", "checkpoints", "--days", "2"]) == 0
    assert names(folder, "checkpoints") == [run]
    for file in (folder / "checkpoints" / run).iterdir():
        os.utime(file, (time.time() - 3 * 86_400,) * 2)
    assert cache.main(["--clear", "checkpoints", "--days", "2"]) == 0
    assert names(folder, "checkpoints") == []


def test_what_a_process_uses_is_left_alone(folder, capsys):
    (run,) = names(folder, "checkpoints")
    with FileLock(folder / "checkpoints" / f"{run}.lock"):
        assert cache.main(["--clear", "checkpoints"]) == 0
    assert f"{run}: left alone, a process is using it" in capsys.readouterr().out
    assert names(folder, "checkpoints") == [run]


def test_an_unknown_name_is_refused_before_anything_goes(folder, capsys):
    (run,) = names(folder, "checkpoints")
    assert cache.main(["--clear", run, "mine"]) == 1
    assert "There is no 'mine' here; choose baselines, checkpoints" in capsys.readouterr().err
    assert names(folder, "checkpoints") == [run]
