"""Every committed experiment runs, in miniature."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_module

from pruning_lab.records.step import MAIN
from tests.running import experiment

SMALL = {
    "compare_criteria": ["model.channels=[8,12]", "model.hidden=32", "finetune.steps=2"],
    "low_data": ["model.channels=[8,12]", "model.hidden=32", "finetune.steps=2"],
    "tune_finetune": ["model.channels=[8,12]", "model.hidden=32", "finetune.steps=2"],
    "untrained_networks": ["model.hidden=[16,12]", "metric.samples=8"],
}
DATA = ["dataset=synthetic", "dataset.train=128", "dataset.test=64", "attributions=none"]


def test_every_preset_is_here():
    committed = {
        path.stem for path in (Path(__file__).parents[1] / "conf/experiment").glob("*.yaml")
    }
    assert committed == set(SMALL)


@pytest.mark.parametrize("preset", SMALL)
def test_the_preset_runs_to_its_end(preset, tmp_path):
    done = experiment(tmp_path, f"experiment={preset}", *DATA, *SMALL[preset], "threads=1", base=[])
    result = done.run()
    assert len(done.record.of(MAIN)) == len(done.steps) + 1
    assert result == done.record.of(MAIN)[-1]["val_accuracy_after"]
    assert done.record.of(MAIN)[-1]["removed_units"] > 0
    trained = done.config.baseline.training.epochs > 0
    assert (done.names.model, trained) == (
        ("mlp", False) if preset == "untrained_networks" else ("convnet", True)
    )


def test_the_tuning_preset_is_compare_criteria_with_several_learning_rates():
    with initialize_config_module("pruning_lab.conf", version_base="1.3"):
        one, other = (
            compose("config", [f"experiment={preset}"], return_hydra_config=True)
            for preset in ("compare_criteria", "tune_finetune")
        )
    for section in ("model", "dataset", "schedule", "finetune", "baseline", "after_cut", "scoring"):
        assert one[section] == other[section]
    values = other.hydra.sweeper.params["finetune.lr"].split(",")
    assert str(one.finetune.lr) in values[1:-1]
