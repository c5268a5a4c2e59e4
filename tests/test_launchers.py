"""The presets for launchers and sweepers: each extends its plugin's own configuration."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from tests.commands import python
from tests.running import TINY

PRESETS = {
    "parallel": ("hydra_joblib_launcher", "joblib_launcher.JoblibLauncher"),
    "slurm": ("hydra_submitit_launcher", "submitit_launcher.SlurmLauncher"),
    "cluster": ("hydra_ray_launcher", "ray_launcher.RayLauncher"),
}
FOLDER = Path(__file__).parents[1] / "conf/hydra/launcher"


def launcher(*overrides):
    with initialize_config_module("pruning_lab.conf", version_base="1.3"):
        return compose("config", list(overrides), return_hydra_config=True).hydra.launcher


def test_every_preset_is_here():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(PRESETS)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_extends_its_plugin(preset):
    plugin, target = PRESETS[preset]
    pytest.importorskip(f"hydra_plugins.{plugin}", reason=f"{plugin} is not installed")
    composed = launcher(f"hydra/launcher={preset}")
    assert composed._target_ == f"hydra_plugins.{plugin}.{target}"
    own = OmegaConf.load(FOLDER / f"{preset}.yaml")
    del own["defaults"]
    assert own
    assert OmegaConf.merge(composed, own) == composed  # every value arrives, no key is new


def test_a_value_of_a_preset_can_be_set():
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="joblib's is not installed")
    assert launcher("hydra/launcher=parallel", "hydra.launcher.n_jobs=7").n_jobs == 7


def test_without_a_preset_jobs_run_one_after_the_other():
    assert launcher()._target_ == "hydra._internal.core_plugins.basic_launcher.BasicLauncher"


TUNE = ["-m", "hydra/sweeper=tune", *TINY, "attributions=none", "metric=random",
        "schedule=one_shot", "hydra.sweeper.n_trials=5", "hydra.sweeper.sampler.n_startup_trials=2",
        "finetune.lr=tag(log,interval(1e-4,1e-1))"]  # fmt: skip


def study(folder, log):
    """Return the results file of a study, and the values that its log lists."""
    (results,) = folder.rglob("optimization_results.yaml")
    return OmegaConf.load(results), re.findall(r"#\d+ : finetune.lr=(\S+)", log)


def test_a_study_that_was_killed_ends_as_one_that_was_not(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="Optuna is not installed")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    done = python(whole, "-m", "pruning_lab", *TUNE)
    assert done.returncode == 0, done.stderr
    results, tried = study(whole, done.stdout)
    assert len(set(tried)) == 5
    assert str(results.best_params["finetune.lr"]) in tried
    command = [sys.executable, "-m", "pruning_lab", *TUNE]
    with subprocess.Popen(command, cwd=killed, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if re.search(r"#3 : finetune.lr=", line):  # three jobs are finished
                process.send_signal(signal.SIGKILL)
    again = python(killed, "-m", "pruning_lab", *TUNE)
    assert again.stdout.count("Finished already: run") == 3
    assert study(killed, again.stdout) == (results, tried)
    assert "All 5 jobs finished." in again.stdout


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["hydra.sweeper.direction=minimize"],
            "direction=minimize is not possible: a job returns accuracy on val",
        ),
        (
            ["task=regression", "hydra.sweeper.direction=maximize"],
            "direction=maximize is not .*RMSE on val, which gets better by minimize",
        ),
        (
            ["hydra.sweeper.direction=[minimize]"],
            "accuracy on val, which gets better by max",
        ),
        (["task=choice(classification,regression)"], "The task cannot be chosen by a search"),
        (
            ["hydra.searchpath=['file://FOLDER/own']", "experiment=mine"],
            "The task cannot be chosen by a search",
        ),
        (["dry_run=true"], "dry_run=true has no results to search by"),
        (
            ["hydra/sweeper=optuna"],
            "accuracy on val, which gets better by max",
        ),  # the plugin's own
    ],
)
def test_the_worst_is_never_chosen(overrides, message, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="Optuna is not installed")
    own = tmp_path / "own/experiment/mine.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("# @package _global_\nhydra:\n  sweeper:\n    params:\n      task: regression\n")
    given = [each for each in TUNE if "n_startup" not in each]
    own_overrides = [each.replace("FOLDER", str(tmp_path)) for each in overrides]
    done = python(tmp_path, "-m", "pruning_lab", *given, *own_overrides)
    assert done.returncode == 1
    assert re.search(message, done.stderr)
    assert not (tmp_path / "mlflow.db").exists()
