"""experiments/sweeps: what is called equal, and what is called whole, is."""

import sqlite3
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from experiments.sweeps import launchers, writers
from tests.running import two_steps

ROOT = Path(__file__).parents[2]


def curves(accuracy):
    metrics = launchers.METRICS
    return pd.DataFrame({"metric": metrics, "step": 0, "accuracy": [accuracy] * len(metrics)})


def test_the_last_bit_makes_a_difference():
    basic, other = curves(0.3), curves(0.1 + 0.2)
    found = {"basic": basic, "same": basic.copy(), "other": other, "short": basic[:5]}
    assert launchers.table(found).splitlines()[2:] == [
        "| basic | 6 of 6 | yes |",
        "| same | 6 of 6 | yes |",
        "| other | 6 of 6 | no |",
        "| short | 5 of 6 | no |",
    ]


def test_a_run_without_all_its_steps_is_not_whole(tmp_path):
    two_steps(tmp_path, "attributions=none").run()
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert writers.complete(uri, "pruning_lab") == 1
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        lost = "key = 'accuracy/test_accuracy_after' and step = 0"
        database.execute(f"delete from metrics where {lost}")
    assert writers.complete(uri, "pruning_lab") == 0


def test_in_every_round_the_store_is_a_new_one(tmp_path):
    assert list(writers.rounds("sqlite", 2, tmp_path)) == [
        (f"sqlite:///{tmp_path}/0/mlflow.db", "pruning_lab"),
        (f"sqlite:///{tmp_path}/1/mlflow.db", "pruning_lab"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "plugin"),
    [
        (["launchers", "hydra/launcher=parallel"], "hydra_joblib_launcher"),
        (["launchers", "hydra/launcher=submitit_local"], "hydra_submitit_launcher"),
        (["writers", "--times", "1"], None),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_commands_end_well(command, plugin):
    if plugin:
        pytest.importorskip(f"hydra_plugins.{plugin}", reason=f"{plugin} is not installed")
    done = subprocess.run(
        [sys.executable, "-m", f"experiments.sweeps.{command[0]}", *command[1:]],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
