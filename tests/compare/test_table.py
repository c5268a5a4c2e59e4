"""The table says what the frame says, by hand; the command writes it."""

import pandas as pd
import pytest

from pruning_lab import tracking
from pruning_lab.compare import __main__ as command
from pruning_lab.compare import accuracy_table, markdown
from pruning_lab.errors import UserError

ABOUT = {"model": "mlp", "dataset": "digits", "schedule": "linear", "finetune": "sgd"}


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
    table = accuracy_table(frame())
    assert table.loc["Taylor"].tolist() == [2, "97.0 → 97.0", "65.0 → 92.5"]
    assert table.loc["Random"].tolist() == [1, "98.0 → 98.0", "10.0 → 50.0"]
    assert table.columns.tolist() == ["runs", "0.0 %", "50.1-51.2 %"]


def test_markdown_is_the_table():
    assert markdown(accuracy_table(frame())).splitlines() == [
        "| criterion | runs | 0.0 % | 50.1-51.2 % |",
        "| --- | ---: | ---: | ---: |",
        "| Random | 1 | 98.0 → 98.0 | 10.0 → 50.0 |",
        "| Taylor | 2 | 97.0 → 97.0 | 65.0 → 92.5 |",
    ]


def test_runs_of_different_experiments_are_not_averaged():
    mixed = frame()
    mixed.loc[0, "model"] = "vgg16"
    with pytest.raises(UserError, match=r"differ in model \(mlp, vgg16\)"):
        accuracy_table(mixed)


def test_the_command_reads_mlflow_and_writes_figure_and_table(tmp_path, monkeypatch, capsys):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    runs = frame()
    for run_id, steps in runs.groupby("run_id"):
        tags = ABOUT | {"metric": steps["metric"].iloc[0], "seed": 0, "baseline": "x"}
        with tracking.run(tracking.connect(uri), "mine", run_id, tags, {}) as record:
            record.table(steps.drop(columns=["metric", "run_id", *ABOUT]))
    arguments = ["--uri", uri, "--experiment", "mine", "--output", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["compare", *arguments])
    command.main()
    expected = markdown(accuracy_table(runs))
    assert (tmp_path / "out" / "accuracy_vs_flops.md").read_text() == expected
    assert expected in capsys.readouterr().out
    assert (tmp_path / "out" / "accuracy_vs_flops.png").read_bytes().startswith(b"\x89PNG")


def test_an_unknown_experiment_is_one_clean_line(tmp_path, monkeypatch, capsys):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setattr("sys.argv", ["compare", "--uri", uri, "--experiment", "other"])
    with pytest.raises(SystemExit) as stopped:
        command.main()
    assert stopped.value.code == 1
    assert "There is no experiment 'other'" in capsys.readouterr().err
