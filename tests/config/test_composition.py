"""What is given is used, or refused: the user's files, keys, names and values."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_module
from omegaconf import flag_override

from pruning_lab.config.composition import check_composed, where_given
from pruning_lab.errors import UserError

PACKAGED = Path(__file__).parents[2] / "conf"

OWN = """# Shapley values with more orders.
_target_: pruning_lab.attributions.ShapleyAttributionMetric
_partial_: true
reduction: mean
sv_samples: 6
samples: 3
"""


@pytest.fixture
def own(tmp_path):
    """Writes files of the user's; gives the override that makes Hydra look there."""

    def write(**files):
        for name, text in files.items():
            path = tmp_path / "my conf" / name.replace("__", "/").replace("_dot_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return f"hydra.searchpath=['file://{tmp_path}/my conf']"

    return write


def names(*overrides, config="config"):
    """What is chosen for model and metric by these overrides."""
    with initialize_config_module("pruning_lab.conf", version_base="1.3"):
        found = compose(config, list(overrides), return_hydra_config=True)
        hydra = found.hydra
        with flag_override(found, ["readonly", "struct"], False):
            del found["hydra"]
        chosen = check_composed(found, hydra)
        return [chosen.model, chosen.metric]


@pytest.mark.parametrize("config", ["config", "truth"])
def test_the_package_is_as_it_says_itself(config):
    assert names(config=config) == ["convnet", "taylor"]
    assert names("experiment=low_data", config=config)[1] == "taylor"


def test_a_file_of_ones_own_is_used(own):
    place = own(metric__mine_dot_yaml=OWN, metric__lamp_dot_yaml=OWN)  # lamp is not chosen
    assert names(place, "metric=mine") == ["convnet", "mine"]


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("metric/shapley.yaml", ["metric=shapley"]),
        ("metric/shapley.yaml", ["attributions=six"]),  # by its defaults list
        ("metric/shapley.yml", ["metric=shapley"]),  # Hydra does not read it at all
        ("config.yaml", []),
        ("experiment/low_data.yaml", ["experiment=low_data"]),
        ("hydra/job_logging/default.yaml", []),
    ],
)
def test_a_file_that_is_shadowed_is_refused(name, overrides, own, tmp_path):
    place = own(**{name.replace("/", "__").replace(".", "_dot_"): OWN})
    with pytest.raises(UserError, match=f"my conf/{name} is not used: .*_mine.yaml"):
        names(place, *overrides)


def test_the_second_of_two_folders_is_shadowed_by_the_first(own, tmp_path):
    own(metric__mine_dot_yaml=OWN)
    first = tmp_path / "first/metric"
    first.mkdir(parents=True)
    places = f"hydra.searchpath=['file://{first.parent}','file://{tmp_path}/my conf']"
    (first / "mine.yaml").write_text(OWN)
    assert names(places, "metric=mine") == ["convnet", "mine"]
    (first / "mine.yaml").write_text(OWN.replace("6", "4"))
    with pytest.raises(UserError, match=r"my conf/metric/mine.yaml is not used: .*/first"):
        names(places, "metric=mine")


def test_a_copy_that_says_the_same_is_no_matter(own):
    text = (PACKAGED / "metric/shapley.yaml").read_text()
    assert names(own(metric__shapley_dot_yaml=f"# mine\n{text}"), "metric=shapley")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("controls:\n  untunned: true", "controls.untunned is not used by anything; the keys are "
         "controls.untuned, controls.stale, controls.scratch"),
        ("baseline:\n  foldr: x", "baseline.foldr is not used .*baseline.folder"),
        ("tracking:\n  url: x", "tracking.url is not used .*tracking.uri"),
        ("keeep: all", "keeep is not used by anything; the keys are seed, "),
    ],
)  # fmt: skip
def test_a_key_of_a_preset_that_nothing_uses_is_refused(text, message, own):
    place = own(experiment__mine_dot_yaml=f"# @package _global_\n{text}\n")
    with pytest.raises(UserError, match=message):
        names(place, "experiment=mine")


def test_a_key_that_others_refer_to_is_used():
    assert names("model=mlp", "+width=8", "model.hidden=['${width}']") == ["mlp", "taylor"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["metric=[taylor,random]"], "metric: several or none were chosen.* -m metric=NAME,NAME"),
        (["~metric"], "metric: several or none"),
        (["~controls"], "controls is missing"),
        (["~seeds.order"], "seeds.order is missing"),
        (["tracking.uri=${oc.env:NOWHERE}/x"], "tracking.uri cannot be resolved: .*'NOWHERE'"),
        (["seed=${sead}"], "seed cannot be resolved: .*'sead' not found"),
    ],
)
def test_what_is_no_configuration_is_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        names(*overrides)


def test_relative_paths_start_where_the_command_was_given(tmp_path, monkeypatch, caplog):
    (tmp_path / "job").mkdir()
    monkeypatch.chdir(tmp_path / "job")  # as hydra.job.chdir=true does
    runtime = SimpleNamespace(cwd=str(tmp_path), output_dir=str(tmp_path / "job"))
    with caplog.at_level("INFO"):
        hydra = SimpleNamespace(job=SimpleNamespace(chdir=True), runtime=runtime)
        with where_given(hydra):
            assert Path.cwd() == tmp_path
    assert Path.cwd() == tmp_path / "job"
    assert "hydra.job.chdir=true does not change relative paths" in caplog.text
