"""The command in miniature: what it writes, keeps, and refuses."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_module
from hydra.errors import CompactHydraException

from pruning_lab import criteria, tracking
from pruning_lab.config.sections import Names
from pruning_lab.errors import UserError
from pruning_lab.ground_truth.__main__ import Truth, main
from pruning_lab.ground_truth.recalibrated import RecalibratedRemovals
from pruning_lab.ground_truth.tables import MEASURES, RANDOM

NAMES = Names("convnet", "digits", "taylor", "geometric", "sgd")


SMALL = ["model=convnet", "model.channels=[4,6]", "model.hidden=24", "dataset=synthetic",
         "dataset.train=128", "dataset.score=32", "dataset.test=64"]  # fmt: skip


def truth(tmp_path, *overrides, network=SMALL):
    with initialize_config_module("pruning_lab.conf", version_base="1.3"):
        config = compose("truth", [
            *network, "threads=1",
            "baseline.training.epochs=8", "truth.shares=[0.2,0.5]", "truth.samples=16",
            "truth.recalibrate=12", "truth.draws=4", "truth.greedy=1",
            f"baseline.folder={tmp_path}/baselines",
            f"checkpoints={tmp_path}/checkpoints", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db",
            *overrides,
        ])  # fmt: skip
    return Truth(config, NAMES, tmp_path / "output")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("truth")
    return folder, truth(folder).run()


def test_every_criterion_has_a_row(done):
    folder, table = done
    assert set(table["criterion"]) == {*criteria.names(), RANDOM} - {"random"}
    layers = pd.read_csv(folder / "output" / "layers.csv")
    assert len(layers[layers["criterion"] == RANDOM]) == 3 * 4
    of = layers.groupby("criterion")["layer"].nunique()
    assert dict(zip(table["criterion"], table["layers"], strict=True)) == of.to_dict()
    assert of["shapley_exact"] + 1 == of["taylor"] == 3  # 24 units are too many for it
    assert np.isfinite(table[["quantile", "points_vs_random", "seconds"]]).all().all()


def test_costs_are_those_of_each_criterion_alone(done):
    _, table = done
    forward = table.set_index("criterion")["forward"]
    assert forward[["apoz", "taylor", "fisher", "sensitivity"]].tolist() == [32] * 4
    assert forward["conductance"] == 17 * 32
    assert forward["weight_norm"] == 0


def test_tables_and_figures_are_files_and_in_mlflow(done):
    folder, table = done
    names = {"truth.md", "truth.csv", "layers.csv", "quality_and_cost.png", "harm_by_layer.png",
             "removal_curves.png"}  # fmt: skip
    assert {path.name for path in (folder / "output").iterdir()} == names
    client = tracking.connect(f"sqlite:///{folder}/mlflow.db")
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert run.info.status == "FINISHED"
    assert {
        Path(each.path).name for each in client.list_artifacts(run.info.run_id, "truth")
    } == names
    rows = table[table["criterion"] != RANDOM].set_index("criterion")
    assert run.data.metrics == {
        f"{key}/{name}": rows.loc[name, key] for key in MEASURES for name in rows.index
    }
    assert run.data.params["truth.recalibrate"] == "12"
    text = (folder / "output" / "truth.md").read_text()
    assert "20, 50 % of the units" in text
    assert "from 12 training samples; measured on 16 test samples" in text


def test_the_comparison_of_runs_does_not_take_it_for_one(done):
    folder, _ = done
    assert tracking.find_runs(f"sqlite:///{folder}/mlflow.db", ["pruning_lab"]).frame.empty


def test_again_nothing_is_scored_or_measured_anew(done, monkeypatch):
    folder, table = done

    def never(*_, **__):
        raise AssertionError("measured again")

    again = truth(folder)
    monkeypatch.setattr(RecalibratedRemovals, "outcomes", never)
    for metric in again.metrics.values():
        monkeypatch.setattr(metric, "estimate", never, raising=False)
    pd.testing.assert_frame_equal(again.run(), table)


def test_layers_that_nobody_scores_are_refused(tmp_path):
    with pytest.raises(UserError, match="None of shapley_exact can score any of the layers"):
        truth(tmp_path, "truth.criteria=[shapley_exact]", "truth.layers=['9']")


def test_it_is_one_process(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(CompactHydraException, match="is one process: start it without torchrun"):
        main.__wrapped__({})


def test_settings_of_a_criterion_can_be_changed(tmp_path):
    made = truth(
        tmp_path, "truth.criteria=[taylor,shapley]", "truth.layers=['0']",
        "+metric@attributions.shapley=shapley", "attributions.shapley.sv_samples=6",
    )  # fmt: skip
    assert list(made.criteria) == ["taylor", "shapley"]
    assert made.metrics["shapley"].sv_samples == 6
    assert list(made.unit_groups) == ["0"]


@pytest.mark.parametrize(
    ("override", "why"),
    [
        ("truth.criteria=[tailor]", "criterion=tailor .*taylor, taylor_signed"),
        ("truth.layers=['2']", r"truth\.layers=2 .* 0, 4, "),
        ("truth.shares=[]", r"truth\.shares=\[\]"),
        ("truth.samples=null", r"truth\.samples=None"),
        ("truth.recalibrate=-1", r"truth\.recalibrate=-1"),
        ("truth.sizes=3", r"truth\.sizes=3 .* a list"),
        ("+truth.point=4", "truth=point .* shares, draws, sizes, sets, greedy"),
        ("truth.criteria=taylor", r"truth\.criteria=taylor .* a list of names"),
        ("truth.criteria=[]", r"truth\.criteria=\[\] .* a list of names"),
        ("truth.layers=[0]", r"truth\.layers=\[0\] .* a list of names"),
        ("dry_run=true", "dry_run=true is for python -m pruning_lab"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(tmp_path, override, why):
    with pytest.raises(UserError, match=why):
        truth(tmp_path, override)
    assert not (tmp_path / "baselines").exists()


@pytest.mark.parametrize(
    ("task", "dataset", "measure"),
    [("regression", "diabetes", "RMSE"), ("multilabel", "digits_multilabel", "macro F1")],
)
def test_a_task_that_cannot_be_judged_is_refused_before_any_work(tmp_path, task, dataset, measure):
    network = ["model=mlp", "model.hidden=[8]", f"dataset={dataset}", f"task={task}"]
    with pytest.raises(UserError, match=f"task={task.title()} .* {measure}, the primary measure"):
        truth(tmp_path, network=network)
    assert not (tmp_path / "baselines").exists()
