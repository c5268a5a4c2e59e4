"""A sweep says beforehand what is left to do, goes on behind failures, and lists them."""

import os
import pickle
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import flag_override

from pruning_lab import tracking
from pruning_lab.experiment import sweep
from tests.commands import python
from tests.running import TINY

SWEEP = ["-m", *TINY, "attributions=none", "schedule=one_shot", "finetune.epochs=9",
         "finetune.steps=null",         "metric=random,taylor", "finetune.lr=0.01,1e9"]  # fmt: skip


def statuses(folder):
    client = tracking.connect(f"sqlite:///{folder / 'mlflow.db'}")
    number = client.get_experiment_by_name("pruning_lab").experiment_id
    return sorted(run.info.status for run in client.search_runs([number]))


def test_failures_do_not_stop_a_sweep_and_only_they_are_run_again(tmp_path):
    first, again = (python(tmp_path, "-m", "pruning_lab", *SWEEP) for _ in range(2))
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


OWN = {
    "own/metric/mine.yaml": "_target_: their.Own\n_partial_: true\n",
    "own/experiment/seeds.yaml": (
        "# @package _global_\nhydra:\n  sweeper:\n    params:\n      seed: 1,2\n"
    ),
}


@pytest.fixture
def begun(tmp_path, monkeypatch, caplog):
    """Begins a sweep without running it: what is said, and the configurations of its jobs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "_state", lambda config: sweep.NEW)
    monkeypatch.setattr(sweep.Sweep, "current", None)

    def begin(*overrides):
        with initialize_config_module("pruning_lab.conf", version_base="1.3"):
            hydra = GlobalHydra.instance().hydra
            config = hydra.compose_config("config", list(overrides), RunMode.MULTIRUN)
            callback = sweep.Sweep()
            with caplog.at_level("INFO"):
                callback.on_multirun_start(config)
            jobs = list(sweep._composed(config, sweep._jobs(config)))
        for job in jobs:
            path = Path(job.hydra.sweep.dir, job.hydra.sweep.subdir)
            with flag_override(job.hydra, ["readonly", "struct"], False):
                job.hydra.runtime.output_dir = str(path)
        return callback, jobs

    return begin


@pytest.mark.parametrize(
    ("overrides", "count"),
    [
        (["metric=random,apoz", "seed=0", "hydra.sweep.subdir=${metric._target_}/s${seed}"], 2),
        (["metric=glob(taylor*)"], 3),  # taylor, taylor_signed, taylor_weight
        (["seed=range(0,2)"], 2),
        (["hydra.searchpath=['file://{folder}/own']", "metric=mine,random"], 2),
        (["hydra.searchpath=['file://{folder}/own']", "experiment=seeds"], 2),  # in its YAML
    ],
)
def test_jobs_are_counted_as_hydra_splits_them(overrides, count, begun, tmp_path, caplog, capsys):
    for name, text in OWN.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    callback, jobs = begun(*(each.replace("{folder}", str(tmp_path)) for each in overrides))
    assert f"{count} jobs: 0 finished, 0 to go on, {count} new" in caplog.text
    assert len({job.hydra.runtime.output_dir for job in jobs}) == len(jobs) == count
    copied = pickle.loads(pickle.dumps(callback))  # as launchers do
    for job in jobs:
        copied.on_job_start(job)
    for job in jobs[1:]:
        copied.on_job_end(job, SimpleNamespace(_return_value=0.5))
    sweep.report()
    assert f"{count - 1} of {count} jobs finished. The others:" in capsys.readouterr().out
    copied.on_job_end(jobs[0], SimpleNamespace(_return_value=0.5))
    sweep.report()
    assert capsys.readouterr().out.endswith(f"All {count} jobs finished.\n\n")


def test_jobs_that_left_no_note_are_said(begun, capsys):
    callback, jobs = begun("seed=0,1,2")
    callback.on_job_end(jobs[0], SimpleNamespace(_return_value=0.5))
    sweep.report()
    told = capsys.readouterr().out
    assert "1 of 3 jobs finished" in told
    assert "2 jobs that were not started (or could not write to " in told


@pytest.mark.parametrize("subdir", ["x", "${metric._target_}"])
def test_jobs_that_would_share_a_folder_end_the_sweep(subdir, begun, tmp_path):
    with pytest.raises(SystemExit, match=r"Jobs 0 and 1 would both write to .*hydra.job.num"):
        begun("seed=0,1", f"hydra.sweep.subdir={subdir}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_cleanly_and_says_how_it_goes_on(sent, tmp_path):
    endless = [*TINY, "attributions=none", "baseline.training.epochs=100000"]
    with subprocess.Popen(
        [sys.executable, "-m", "pruning_lab", *endless],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored under nohup
    ) as job:  # fmt: skip
        for line in job.stdout:
            if "Training mlp on synthetic" in line:
                break
        os.kill(job.pid, sent)
        _, error = job.communicate()
    assert job.returncode == 130
    assert error.splitlines()[-1] == (
        "Interrupted. Run the same command again to resume after the last completed step."
    )
    assert "Traceback" not in error
    assert statuses(tmp_path) == ["KILLED"]
