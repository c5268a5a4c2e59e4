"""The table says what the frame says, by hand; the command writes it."""

import pandas as pd
import pytest

from pruning_lab import tracking
from pruning_lab.compare import __main__ as command
from pruning_lab.compare import accuracy_table, comparable, markdown, told_apart
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


def record_runs(uri, runs):
    for run_id, steps in runs.groupby("run_id"):
        first = steps.iloc[0]
        tags = {key: first[key] for key in (*ABOUT, "metric")} | {"seed": 0, "baseline": "x"}
        with tracking.run(tracking.connect(uri), "mine", run_id, tags, {"name": run_id}) as record:
            record.table(steps.drop(columns=["metric", "run_id", *ABOUT]))


def run_command(monkeypatch, uri, folder):
    arguments = ["--uri", uri, "--experiment", "mine", "--output", str(folder)]
    monkeypatch.setattr("sys.argv", ["compare", *arguments])
    command.main()


def test_the_command_reads_mlflow_and_writes_figure_and_table(tmp_path, monkeypatch, capsys):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    record_runs(uri, frame())
    run_command(monkeypatch, uri, tmp_path / "out")
    expected = markdown(accuracy_table(frame()))
    assert (tmp_path / "out" / "accuracy_vs_flops.md").read_text() == expected
    assert expected in capsys.readouterr().out
    assert (tmp_path / "out" / "accuracy_vs_flops.png").read_bytes().startswith(b"\x89PNG")


def test_different_experiments_get_figures_of_their_own(tmp_path, monkeypatch):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    runs = frame()
    runs.loc[runs["run_id"] == "b", "setting"] = "xyz"
    record_runs(uri, runs)
    run_command(monkeypatch, uri, tmp_path)
    for setting, run_ids in (("abc", ["a", "c"]), ("xyz", ["b"])):
        table = tmp_path / f"mlp-digits-linear-sgd-{setting}" / "accuracy_vs_flops.md"
        expected = accuracy_table(runs[runs["run_id"].isin(run_ids)])
        assert table.read_text() == markdown(expected)


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


def test_a_repeated_run_counts_once(tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    record_runs(uri, frame())
    record_runs(uri, frame().query("run_id == 'a'").assign(test_accuracy_after=0.5))
    found = tracking.read_runs(uri, "mine")
    assert len(found) == 6
    assert found["test_accuracy_after"].value_counts()[0.5] == 3  # the newest of the two, and c


@pytest.mark.parametrize("there", [True, False])
def test_an_unknown_experiment_or_store_is_one_clean_line(there, tmp_path, monkeypatch, capsys):
    path = tmp_path / "mlflow.db"
    if there:
        tracking.connect(f"sqlite:///{path}")
    monkeypatch.setattr("sys.argv", ["compare", "--uri", f"sqlite:///{path}"])
    with pytest.raises(SystemExit) as stopped:
        command.main()
    assert stopped.value.code == 1
    expected = "There is no experiment 'pruning_lab'" if there else "mlflow.db is not there"
    assert expected in capsys.readouterr().err
    assert path.exists() == there  # reading makes nothing
