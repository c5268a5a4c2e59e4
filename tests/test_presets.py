"""Every committed experiment runs, in miniature."""

from pathlib import Path

import pytest

from pruning_lab.track import MAIN
from tests.experiment import experiment

SMALL = {
    "compare_criteria": ["model.channels=[4,6]", "model.hidden=16", "finetune.epochs=1"],
    "low_data": ["model.channels=[4,6]", "model.hidden=16", "finetune.epochs=1"],
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
