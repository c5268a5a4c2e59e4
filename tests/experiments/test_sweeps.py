"""experiments/sweeps: what is called equal, and what is called whole, is."""

import runpy
import sqlite3
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.experiment import two_steps

FOLDER = Path(__file__).parents[2] / "experiments/sweeps"


@pytest.fixture(scope="module")
def launchers():
    return runpy.run_path(str(FOLDER / "launchers.py"))


@pytest.fixture(scope="module")
def writers():
    return runpy.run_path(str(FOLDER / "writers.py"))


def curves(launchers, accuracy):
    metrics = launchers["METRICS"]
    return pd.DataFrame({"metric": metrics, "step": 0, "accuracy": [accuracy] * len(metrics)})


def test_the_last_bit_makes_a_difference(launchers):
    basic, other = curves(launchers, 0.3), curves(launchers, 0.1 + 0.2)
    found = {"basic": basic, "same": basic.copy(), "other": other, "short": basic[:5]}
    assert launchers["table"](found).splitlines()[2:] == [
        "| basic | 6 of 6 | yes |",
        "| same | 6 of 6 | yes |",
        "| other | 6 of 6 | no |",
        "| short | 5 of 6 | no |",
    ]


def test_a_run_without_all_its_steps_is_not_whole(writers, tmp_path):
    two_steps(tmp_path, "attributions=none").run()
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert writers["complete"](uri, "pruning_lab") == 1
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        lost = "key = 'accuracy/test_accuracy_after' and step = 0"
        database.execute(f"delete from metrics where {lost}")
    assert writers["complete"](uri, "pruning_lab") == 0


def test_in_every_round_the_store_is_a_new_one(writers, tmp_path):
    assert list(writers["rounds"]("sqlite", 2, tmp_path)) == [
        (f"sqlite:///{tmp_path}/0/mlflow.db", "pruning_lab"),
        (f"sqlite:///{tmp_path}/1/mlflow.db", "pruning_lab"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "plugin"),
    [
        (["launchers.py", "hydra/launcher=parallel"], "hydra_joblib_launcher"),
        (["launchers.py", "hydra/launcher=submitit_local"], "hydra_submitit_launcher"),
        (["writers.py", "--times", "1"], None),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_commands_end_well(command, plugin):
    if plugin:
        pytest.importorskip(f"hydra_plugins.{plugin}", reason=f"{plugin} is not installed")
    done = subprocess.run(
        [sys.executable, FOLDER / command[0], *command[1:]],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
