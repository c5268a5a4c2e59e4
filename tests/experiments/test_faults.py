"""experiments/faults: what it calls equal is, and every fault strikes."""

import os
import signal

import numpy as np
import pandas as pd
import pytest

from experiments.faults import faults, trial


def found(**other):
    curve = pd.DataFrame({"accuracy": [0.9, 0.1 + 0.2]})
    return {
        "runs": ["FINISHED"],
        "curve": curve,
        "points": [("a", 0)],
        "x.npz": {"s": b"1"},
    } | other


@pytest.mark.parametrize(
    "other",
    [
        {"runs": ["FINISHED", "RUNNING"]},
        {"curve": pd.DataFrame({"accuracy": [0.9, 0.3]})},
        {"points": [("a", 0), ("a", 0)]},
        {"x.npz": {"s": b"2"}},
        {"more.npz": {}},
    ],
    ids=lambda other: str(*other),
)
def test_any_difference_is_one(other):
    assert trial.same(found(), found())
    assert not trial.same(found(**other), found())


def test_the_content_of_an_archive_has_no_dates(tmp_path):
    for name in ("one", "two"):
        np.savez(tmp_path / name, scores=np.arange(3.0))
        os.utime(tmp_path / f"{name}.npz", (0, len(name)))
    assert trial.content(tmp_path / "one.npz") == {"scores": np.arange(3.0).tobytes()}
    assert trial.content(tmp_path / "one.npz") == trial.content(tmp_path / "two.npz")


def test_trials_count_what_was_said_apart_from_what_was_kept(tmp_path):
    trials = trial.Trials("a fault")
    assert trials.told == ""
    trials.add(True, tmp_path, True)
    trials.add(True, tmp_path, False)
    trials.add(False, tmp_path)
    assert (trials.count, trials.told, trials.equal, len(trials.problems)) == (3, "1", 2, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "exit_code", "told"),
    [
        (faults.broken_write(1, "ENOSPC"), 1, "cannot be written: No space left on device"),
        (faults.broken_write(1, "torn"), -signal.SIGKILL, ""),
        (faults.broken_output(0, "EACCES"), 1, "Permission denied. Run the same command again"),
        (faults.broken_store(0, once=False), 1, "mlflow.db cannot be written: No space left"),
        (faults.broken_store(4, once=True), 1, "cannot be reached: [Errno 28] No space left"),
        (faults.broken_store(20, once=True), 0, "does not take what was measured"),
        (faults.broken_data(9), 1, "Input/output error. Run the same command again"),
    ],
)
def test_a_fault_strikes_and_is_told(fault, exit_code, told, tmp_path):
    assert trial.finish(tmp_path, [], fault) == exit_code
    assert (tmp_path / faults.STRUCK).exists()
    assert told in trial.said(tmp_path)
