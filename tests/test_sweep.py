"""A sweep says beforehand what is left to do, goes on behind failures, and lists them."""

import os
import re
import signal
import subprocess
import sys

import pytest

from pruning_lab import tracking
from tests.experiment import TINY

SWEEP = ["-m", *TINY, "attributions=none", "schedule=one_shot", "finetune.epochs=9",
         "metric=random,taylor", "finetune.lr=0.01,1e9"]  # fmt: skip


def command(*overrides):
    return [sys.executable, "-m", "pruning_lab", *overrides]


def statuses(folder):
    client = tracking.connect(f"sqlite:///{folder / 'mlflow.db'}")
    number = client.get_experiment_by_name("pruning_lab").experiment_id
    return sorted(run.info.status for run in client.search_runs([number]))


def test_failures_do_not_stop_a_sweep_and_only_they_are_run_again(tmp_path):
    first, again = (
        subprocess.run(command(*SWEEP), cwd=tmp_path, capture_output=True, text=True, check=False)
        for _ in range(2)
    )
    assert [first.returncode, again.returncode] == [1, 1]
    assert "4 jobs: 0 finished, 0 to go on, 4 new" in first.stdout
    assert "4 jobs: 2 finished, 2 to go on, 0 new" in again.stdout
    diverged = (
        r"    The loss became nan in epoch \d of Fine-tuning, step 1 of 1: training diverged."
    )
    for done in (first, again):
        report = done.stdout.partition("2 of 4 jobs finished. The others:\n")[2].splitlines()
        assert report[0] == "  metric=random finetune.lr=1000000000.0"
        assert re.match(diverged, report[1])
        assert report[2] == "  metric=taylor finetune.lr=1000000000.0"
        assert report[4] == "What is finished is not run again by:"
        assert report[5].startswith("  python -m pruning_lab -m model=mlp 'model.hidden=[16,12]'")
        assert "Traceback" not in done.stdout + done.stderr
    assert again.stdout.count("Finished already: run") == 2
    assert statuses(tmp_path) == ["FAILED", "FAILED", "FINISHED", "FINISHED"]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_cleanly_and_says_how_it_goes_on(sent, tmp_path):
    endless = command(*TINY, "attributions=none", "baseline.training.epochs=100000")
    with subprocess.Popen(
        endless, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored under nohup
    ) as job:  # fmt: skip
        for line in job.stdout:
            if "Training mlp on synthetic" in line:
                break
        os.kill(job.pid, sent)
        _, error = job.communicate()
    assert job.returncode == 130
    assert error.splitlines()[-1] == (
        "Interrupted. The same command goes on behind what is finished."
    )
    assert "Traceback" not in error
    assert statuses(tmp_path) == ["KILLED"]
