"""The presets for launchers: each extends its plugin's own configuration."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

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
