"""The table says what the frame says, by hand."""

import pandas as pd
import pytest

from pruning_lab.compare import comparable, markdown, quality_table
from pruning_lab.compare.runs import told_apart
from pruning_lab.errors import UserError

ABOUT = {"model": "mlp", "dataset": "digits", "schedule": "linear", "finetune": "sgd",
         "setting": "abc", "metric_settings": "{}"}  # fmt: skip


def frame():
    """Two criteria; Taylor has two runs, which removed slightly different shares."""
    columns = ["metric", "run_id", "step", "removed_flops"]
    columns += ["test_accuracy_before", "test_accuracy_after", "removed_parameters"]
    rows = [
        ("taylor", "a", 0, 0.0, 0.98, 0.98, 0.0),
        ("taylor", "a", 1, 0.501, 0.60, 0.90, 0.4),
        ("taylor", "b", 0, 0.0, 0.96, 0.96, 0.0),
        ("taylor", "b", 1, 0.512, 0.70, 0.95, 0.4),
        ("random", "c", 0, 0.0, 0.98, 0.98, 0.0),
        ("random", "c", 1, 0.505, 0.10, 0.50, 0.4),
    ]
    return pd.DataFrame(rows, columns=columns).assign(**ABOUT)


def test_cells_are_means_over_the_runs_in_percent():
    table = quality_table(frame())
    assert table.loc["Taylor"].tolist() == [2, "97.0 → 97.0", "65.0 → 92.5"]
    assert table.loc["Random"].tolist() == [1, "98.0 → 98.0", "10.0 → 50.0"]
    assert table.columns.tolist() == ["runs", "0.0 %", "50.1-51.2 %"]


def test_markdown_is_the_table():
    assert markdown(quality_table(frame())).splitlines() == [
        "| criterion | runs | 0.0 % | 50.1-51.2 % |",
        "| --- | ---: | ---: | ---: |",
        "| Random | 1 | 98.0 → 98.0 | 10.0 → 50.0 |",
        "| Taylor | 2 | 97.0 → 97.0 | 65.0 → 92.5 |",
    ]


def test_runs_of_different_experiments_are_not_averaged():
    mixed = frame()
    mixed.loc[0, "model"] = "vgg16"
    with pytest.raises(UserError, match=r"differ in model \(mlp, vgg16\)"):
        quality_table(mixed)


def test_a_criterion_with_several_settings_is_several_criteria():
    runs = frame()
    runs.loc[runs["run_id"] == "a", "metric_settings"] = '{"samples": 16, "reduction": "mean"}'
    runs.loc[runs["run_id"] == "b", "metric_settings"] = '{"samples": null, "reduction": "mean"}'
    told = told_apart(runs)
    assert told.groupby("run_id")["metric"].first().to_dict() == {
        "a": "taylor samples=16", "b": "taylor samples=None", "c": "random",
    }  # fmt: skip


def test_a_group_has_no_columns_of_other_models():
    runs = frame().assign(**{"width/0": [3, 2, 3, 2, None, None]})
    runs.loc[runs["run_id"] == "c", "model"] = "vgg16"
    groups = comparable(runs)
    assert ["width/0" in group for group in groups.values()] == [True, False]
