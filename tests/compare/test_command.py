"""``python -m pruning_lab.compare`` from recorded runs to a report."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from pruning_lab import tracking
from pruning_lab.attributions.estimation.reduction import Estimate
from pruning_lab.compare import __main__ as command
from pruning_lab.compare import recorded
from pruning_lab.errors import UserError
from pruning_lab.tracking import keys, read, write
from tests.compare.test_across import several
from tests.compare.test_report import runs

ABOUT = [
    "metric",
    "model",
    "dataset",
    "schedule",
    "finetune",
    "setting",
    "baseline",
    "block",
    "seed",
]


@pytest.fixture
def uri(tmp_path):
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def record(uri, frame, experiment="mine", fails=False, **params):
    """Runs as an experiment leaves them; the ids that they have now, by those they had."""
    rng, ids = np.random.default_rng(0), {}
    for name, rows in frame.groupby("run_id", sort=False):
        tags = dict(rows.iloc[0][ABOUT]) | {"metric_settings": "{}"}
        scores = {each: {"fc": Estimate(rng.random(9))} for each in ("random", "taylor")}
        client = tracking.connect(uri)
        try:
            with write.run(client, experiment, name, tags, {"name": name} | params) as run:
                ids[name] = run.run_id
                run.table(rows.drop(columns=["run_id", *ABOUT]))
                run.scores(scores)
                if fails:
                    raise ValueError("odd")
        except ValueError:
            pass
    return ids


def compare(monkeypatch, uri, *arguments):
    monkeypatch.setattr("sys.argv", ["compare", "--uri", uri, *arguments])
    command.main()


def test_the_command_writes_the_report_and_the_frame(uri, tmp_path, monkeypatch, capsys):
    ids = record(uri, runs())
    compare(monkeypatch, uri, "--experiment", "mine", "--output", str(tmp_path / "out"))
    printed = capsys.readouterr().out
    text = (tmp_path / "out" / "report.md").read_text()
    assert text in printed
    (tmp_path / "any").mkdir()
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "any").stat().st_mode
    assert f"Report: {tmp_path / 'out' / 'report.html'}" in printed
    assert "# vgg16 on digits: 6 criteria" in text
    client = tracking.connect(uri)
    (kept,) = [run for run in client.search_runs([client.get_run(ids["apoz-0"]).info.experiment_id])
               if run.info.run_id not in ids.values()]  # fmt: skip
    assert kept.info.run_name == "report: vgg16-digits-geometric-sgd-s"
    assert kept.data.tags["comparison"] == "24"
    files = {Path(file.path).name for file in client.list_artifacts(kept.info.run_id, "report")}
    assert {"report.html", "accuracy_vs_flops.svg", "runs.csv"} <= files
    assert tracking.find_runs(uri, ["mine"]).left_out.empty  # it is no experiment
    assert "4 blocks" in text
    assert "## Agreement of the criteria" in text
    frame = pd.read_csv(tmp_path / "out" / "runs.csv")
    assert len(frame) == 6 * 4 * 2 * 3
    assert set(frame["run_id"]) == set(ids.values())


def test_runs_of_other_settings_get_reports_of_their_own(uri, tmp_path, monkeypatch):
    frame = runs(["random", "taylor", "shapley"], seeds=2)
    record(uri, frame)
    record(uri, frame.assign(setting="t"), other=1)
    compare(monkeypatch, uri, "--experiment", "mine", "--output", str(tmp_path / "out"))
    reports = {path.parent.name for path in (tmp_path / "out").glob("*/report.html")}
    assert reports == {"vgg16-digits-geometric-sgd-s", "vgg16-digits-geometric-sgd-t"}


def test_a_group_without_a_curve_does_not_take_the_others_along(uri, tmp_path, monkeypatch):
    frame = runs(["random", "taylor"], seeds=2)
    record(uri, frame)
    record(uri, frame.query("step == 0").assign(setting="t"), other=1)
    with pytest.raises(SystemExit, match=r"No report of vgg16-.*-t: The run \w+ removed nothing"):
        compare(monkeypatch, uri, "--experiment", "mine", "--output", str(tmp_path / "out"))
    assert [path.parent.name for path in (tmp_path / "out").glob("*/report.html")] == [
        "vgg16-digits-geometric-sgd-s"
    ]


def test_a_run_whose_steps_are_gone_is_left_out(uri):
    ids = record(uri, runs(["random", "taylor"], seeds=1))
    client = tracking.connect(uri)
    folder = client.get_run(ids["taylor-0"]).info.artifact_uri.removeprefix("file://")
    for damage in (lambda path: path.write_text(""), Path.unlink):
        damage(Path(folder) / keys.STEPS)
        found = tracking.find_runs(uri, ["mine"])
        assert set(found.frame["metric"]) == {"random"}
        assert "its steps cannot be read: " in found.left_out["reason"].iloc[0]


def test_only_the_report_is_kept_and_only_where_it_is_wanted(uri, tmp_path, monkeypatch, capsys):
    record(uri, runs(["random", "taylor"], seeds=2))
    (tmp_path / "out" / "older").mkdir(parents=True)
    (tmp_path / "out" / "older" / "report.md").write_text("another one")
    asked = ["--experiment", "mine", "--output", str(tmp_path / "out")]
    compare(monkeypatch, uri, *asked, "--no-keep")
    client = tracking.connect(uri)
    number = client.get_experiment_by_name("mine").experiment_id
    assert len(client.search_runs([number])) == 4
    compare(monkeypatch, uri, *asked)
    kept = client.search_runs([number])[0].info.run_id
    assert "older" not in {Path(f.path).name for f in client.list_artifacts(kept, "report")}
    monkeypatch.setattr(command, "keep_report", lambda *_: 1 / 0)
    capsys.readouterr()
    compare(monkeypatch, uri, *asked)
    assert "Not kept in MLflow: division by zero" in capsys.readouterr().out


def test_files_of_other_machines_are_downloaded_for_a_while(tmp_path):
    class Client:
        def download_artifacts(self, run_id, name, folder):
            path = Path(folder) / name
            path.write_text(f"{run_id} {name}")
            return str(path)

    info = SimpleNamespace(artifact_uri="s3://bucket/1/abc/artifacts", run_id="abc")
    with read._file(Client(), SimpleNamespace(info=info), "steps.csv") as path:
        assert path.read_text() == "abc steps.csv"
    assert not path.exists()


def test_runs_that_are_left_out_are_named(uri):
    frame = runs(["random", "taylor"], seeds=1)
    record(uri, frame)
    ids = record(uri, frame[frame["metric"] == "taylor"])
    failed = record(uri, frame[frame["metric"] == "random"], fails=True, other=1)
    client = tracking.connect(uri)
    number = client.get_experiment_by_name("mine").experiment_id
    running = client.create_run(number, run_name="mid").info.run_id
    foreign = client.create_run(number, run_name="else").info.run_id
    client.set_terminated(foreign)
    found = tracking.find_runs(uri, ["mine"])
    assert found.frame["run_id"].nunique() == 2
    assert ids["taylor-0"] in set(found.frame["run_id"])  # the newest of the two
    reasons = found.left_out.set_index("run_id")["reason"].to_dict()
    assert reasons.pop(failed["random-0"]) == "failed: ValueError: odd"
    assert reasons.pop(running) == "not finished"
    assert reasons.pop(foreign) == "is no experiment of pruning_lab: it has no tag 'metric'"
    assert list(reasons.values()) == ["a newer run repeats it"]
    assert set(found.left_out["run"]) == {"random-0", "taylor-0", "mid", "else"}


def test_several_experiments_are_read_together(uri):
    record(uri, runs(["random"], seeds=1), "one")
    record(uri, runs(["taylor"], seeds=1), "two")
    assert set(tracking.read_runs(uri, "one", "two")["metric"]) == {"random", "taylor"}


def test_tags_and_days_filter(uri):
    record(uri, runs(["random", "taylor"], seeds=2))
    found = tracking.find_runs(uri, ["mine"], {"metric": "taylor", "seed": "1"})
    assert found.frame["run_id"].nunique() == 1
    assert found.left_out.empty  # what was not asked for is not left out
    today = datetime.now(UTC).date()
    day = timedelta(days=1)
    for since, until, count in ((today - day, None, 4), (None, today + day, 4),
                                (today - day, today + day, 4), (today + day, None, 0),
                                (None, today - day, 0)):  # fmt: skip
        frame = tracking.find_runs(uri, ["mine"], since=since, until=until).frame
        assert (frame["run_id"].nunique() if count else len(frame)) == count


def test_a_tag_that_no_run_has_lists_those_there_are(uri):
    record(uri, runs(["random", "taylor"], seeds=1))
    with pytest.raises(UserError, match=r"tag metric=shap; there are: random, taylor"):
        tracking.find_runs(uri, ["mine"], {"metric": "shap"})
    with pytest.raises(UserError, match=r"tag colour=red; there are: no run has such a tag"):
        tracking.find_runs(uri, ["mine"], {"colour": "red"})


def test_frames_of_versions_without_tracks_have_the_main_one(uri):
    record(uri, runs(["random"], seeds=1).query("track == 'main'").drop(columns="track"))
    assert set(tracking.read_runs(uri, "mine")["track"]) == {"main"}


def test_where_nothing_is_finished_it_says_why(uri, tmp_path, monkeypatch, capsys):
    record(uri, runs(["random"], seeds=1), fails=True)
    with pytest.raises(SystemExit) as stopped:
        compare(monkeypatch, uri, "--experiment", "mine")
    assert str(stopped.value).startswith("No run of mine that was asked for is finished.\nrandom-0")
    assert "failed: ValueError: odd" in str(stopped.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--experiment", "mine", "--tag", "metric"], r"--tag metric is not NAME=VALUE"),
        ([], r"There is no experiment 'pruning_lab' in this store; there are: mine"),
    ],
)
def test_impossible_requests_are_one_clean_line(arguments, message, uri, monkeypatch):
    record(uri, runs(["random"], seeds=1))
    with pytest.raises(SystemExit, match=message):
        compare(monkeypatch, uri, *arguments)


def test_an_unknown_store_is_one_clean_line_and_is_not_made(tmp_path, monkeypatch):
    path = tmp_path / "mlflow.db"
    with pytest.raises(SystemExit, match=r"mlflow.db is not there"):
        compare(monkeypatch, f"sqlite:///{path}")
    assert not path.exists()


def test_several_models_get_ranks_over_all_of_them(uri, tmp_path, monkeypatch, capsys):
    frame = several([("vgg16", "digits"), ("mlp", "digits")])
    record(uri, frame.drop(columns="metric_settings"))
    compare(monkeypatch, uri, "--experiment", "mine", "--output", str(tmp_path / "out"))
    folder = tmp_path / "out" / "models_and_datasets"
    assert "Over 2 pairs of model and data set" in (folder / "report.md").read_text()
    assert (folder / "critical_difference_geometric_sgd.png").exists()
    assert "| vgg16 on digits | " in capsys.readouterr().out


def test_scores_before_and_after_fine_tuning_are_those_of_the_second_step(
    uri, tmp_path, monkeypatch
):
    ids = record(uri, runs(["random", "taylor"], seeds=2))
    client, ramp = tracking.connect(uri), np.arange(9.0)
    swapped = ramp.copy()
    swapped[:2] = 1, 0  # squared differences of ranks: 1 + 1
    for name in ("taylor-0", "taylor-1"):
        run = write.Run(client, ids[name])
        run.scores({"taylor": {"fc": Estimate(ramp)}}, 2, "untuned")
        run.scores({"taylor": {"fc": Estimate(swapped)}}, 2)
    compare(monkeypatch, uri, "--experiment", "mine", "--output", str(tmp_path / "out"))
    table = pd.read_csv(tmp_path / "out" / "through_finetuning.csv")
    assert table[["metric", "layer", "runs"]].to_numpy().tolist() == [["taylor", "fc", 2]]
    assert table.loc[0, "spearman"] == pytest.approx(1 - 6 * 2 / (9 * 80))


def test_scores_of_other_layers_do_not_cost_the_report(uri, tmp_path, monkeypatch):
    ids = record(uri, runs(["random", "taylor"], seeds=2))
    run = write.Run(tracking.connect(uri), ids["taylor-0"])
    run.scores({"taylor": {"fc": Estimate(np.arange(9.0))}}, 2, "untuned")
    run.scores({"taylor": {"fc": Estimate(np.arange(8.0))}}, 2)
    compare(monkeypatch, uri, "--experiment", "mine", "--output", str(tmp_path / "out"))
    assert (tmp_path / "out" / "report.html").exists()
    assert not (tmp_path / "out" / "through_finetuning.csv").exists()


def test_scores_of_all_runs_of_a_baseline_are_put_together():
    metrics = ["taylor", "shapley n=1", "shapley n=2", "taylor"]
    frame = pd.DataFrame({"baseline": list("bbbc"), "run_id": list("1234"), "metric": metrics})
    kept = {"1": {"taylor": 1, "shapley": 0}, "2": {"shapley": 2}, "3": {"shapley": 3},
                "4": {"taylor": 4}}  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorded, "read_scores", lambda uri, run: kept[run])
        found = recorded.baseline_scores(frame, "uri")
    assert found == {"b": {"taylor": 1, "shapley n=1": 2, "shapley n=2": 3}}


def test_the_report_says_what_was_run(uri, tmp_path, monkeypatch):
    record(uri, runs(["random", "taylor"], seeds=2), **{
        "schedule.target": 0.8, "finetune.share": None, "dataset.root": "data", "metric.n": 3,
    })  # fmt: skip
    compare(monkeypatch, uri, "--experiment", "mine", "--output", str(tmp_path / "out"))
    text = (tmp_path / "out" / "report.md").read_text()
    assert "taylor: no options." in text
    assert text.endswith("| option | value |\n| --- | ---: |\n| schedule.target | 0.8 |\n")
