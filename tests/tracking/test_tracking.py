"""What is written to MLflow is what is read back; what cannot be written to is said at once."""

import re
import shutil
import sqlite3
from contextlib import closing, nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sqlalchemy
from hypothesis import example, given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.utils.validation import _validate_metric_name

from pruning_lab import tracking
from pruning_lab.attributions.estimation.reduction import Estimate
from pruning_lab.errors import UserError
from pruning_lab.tasks import Measure
from pruning_lab.tracking import keys, read, store, write
from tests.commands import FORKED
from tests.running import empty_store

TAGS = {"metric": "taylor", "model": "mlp", "dataset": "digits", "schedule": "linear",
        "finetune": "sgd", "baseline": "abc", "setting": "def",
        "metric_settings": "{}", "seed": 7}  # fmt: skip


@pytest.fixture
def uri(tmp_path):
    return f"sqlite:///{tmp_path / 'deep' / 'mlflow.db'}"


def steps(removed):
    return pd.DataFrame({"step": range(len(removed)), "removed_flops": removed})


def test_everything_written_comes_back(uri, tmp_path):
    client = tracking.connect(uri)
    known = Estimate(
        np.array([3.0]), *(np.array([each]) for each in (0.1, 0.2, 5.0)), np.array(7.0)
    )
    scores = {"taylor": {"features.0": Estimate(np.array([1.5, -2.0])), "fc|odd": known}}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "recipe.json").write_text("{}")
    with write.run(client, "mine", "name", TAGS, {"a.b": 0.1}, "#123456") as run:
        run.metrics(281, {"accuracy/test_accuracy_after": 0.9, "cost/flops": 10, "width/0": 3})
        run.table(steps([0.0, 0.281]))
        run.text("hello", "note.txt")
        run.figure(Figure(), "empty")
        run.scores(scores)
        run.scores(scores, 2)
        run.folder(tmp_path / "model", "pruned_model")
    found = client.get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "name"
    assert found.data.params == {"a.b": "0.1"}
    assert found.data.tags["mlflow.runColor"] == "#123456"
    assert {key: found.data.tags[key] for key in TAGS} == {k: str(v) for k, v in TAGS.items()}
    assert found.data.metrics == {
        "accuracy/test_accuracy_after": 0.9, "cost/flops": 10, "width/0": 3,
    }  # fmt: skip
    (metric,) = client.get_metric_history(run.run_id, "cost/flops")
    assert metric.step == 281
    for step in (None, 2):
        loaded = tracking.read_estimates(uri, run.run_id, step)
        assert {name: list(layers) for name, layers in loaded.items()} == {
            "taylor": ["features.0", "fc|odd"]
        }
        for layer, each in scores["taylor"].items():
            for key, value in vars(each).items():
                np.testing.assert_array_equal(getattr(loaded["taylor"][layer], key), value)
        alone = tracking.read_scores(uri, run.run_id, step)
        assert alone["taylor"]["features.0"].tolist() == [1.5, -2.0]
    frame = tracking.read_runs(uri, "mine")
    assert frame.to_dict("list") == {
        "run_id": [run.run_id] * 2, **{key: [value] * 2 for key, value in TAGS.items()},
        "block": ["abc"] * 2, "measure": ["accuracy"] * 2, "measure_label": ["accuracy"] * 2,
        "measure_unit": ["%"] * 2,
        "measure_better": ["higher"] * 2, "track": ["main"] * 2, "step": [0, 1],
        "removed_flops": [0.0, 0.281],
    }  # fmt: skip
    files = {file.path for file in client.list_artifacts(run.run_id)}
    assert files == {"figures", "note.txt", "pruned_model", "scores", "steps.csv"}
    assert (tmp_path / "deep" / "mlruns" / "mine" / run.run_id).is_dir()


def test_only_finished_runs_are_read_and_failures_say_why(uri):
    client = tracking.connect(uri)
    with pytest.raises(ValueError, match="odd"), write.run(client, "e", "bad", TAGS, {}) as bad:
        raise ValueError("odd")
    with pytest.raises(KeyboardInterrupt), write.run(client, "e", "cut", TAGS, {}) as cut:
        raise KeyboardInterrupt
    assert client.get_run(bad.run_id).info.status == "FAILED"
    assert client.get_run(bad.run_id).data.tags["error"] == "ValueError: odd"
    assert client.get_run(cut.run_id).info.status == "KILLED"
    assert tracking.read_runs(uri, "e").empty


def test_an_unknown_experiment_lists_those_there_are(uri):
    with write.run(tracking.connect(uri), "mine", "n", TAGS, {}):
        pass
    with pytest.raises(UserError, match=r"no experiment 'yours'.*there are: mine, Default"):
        tracking.read_runs(uri, "yours")


@pytest.mark.parametrize(
    "bad",
    [
        "http://127.0.0.1:9",
        "sqlite:///{folder}/file",
        "sqlite:///{folder}/file/mlflow.db",
        "nonsense://x",
        "sqlite:///{folder}",
    ],
)
def test_a_store_that_cannot_be_reached_is_refused(bad, tmp_path):
    (tmp_path / "file").write_text("neither a folder nor a database")
    bad = bad.format(folder=tmp_path)
    with pytest.raises(UserError, match=r"^tracking.uri=.* cannot be reached: .*give another addr"):
        tracking.connect(bad)


def test_passwords_are_not_shown():
    with pytest.raises(UserError) as caught:
        tracking.connect("postgresql://me:se:cret@127.0.0.1:9/db")
    assert "cret" not in str(caught.value)
    assert "me:***@127.0.0.1" in str(caught.value)


def connect_and_log(uri, number):
    client = tracking.connect(uri)
    with write.run(client, "mine", "n", TAGS, {"number": number}) as run:
        run.table(steps([0.0]))


def test_jobs_that_start_together_share_a_new_store(uri):
    jobs = [FORKED.Process(target=connect_and_log, args=(uri, number)) for number in range(3)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert [job.exitcode for job in jobs] == [0, 0, 0]
    assert tracking.read_runs(uri, "mine")["run_id"].nunique() == 3


def test_the_ui_command_can_be_pasted(tmp_path):
    command, page = store.where_to_look("sqlite:///a b.db", "3").splitlines()
    charts = "#/experiments/3/runs?compareRunsMode=CHART&workflowType=machine_learning"
    assert command.endswith("mlflow ui --backend-store-uri 'sqlite:///a b.db'")
    assert page.strip() == f"then open http://127.0.0.1:5000/{charts}"
    server = store.where_to_look("https://me:secret@mlflow.example.org/", "3")
    assert server == f"https://me:***@mlflow.example.org/{charts}"


def test_nested_settings_become_dotted_keys():
    nested = {"a": {"b": {"c": 1}, "d": [1, "x"]}, "e": None}
    assert write.flatten(nested) == {"a.b.c": 1, "a.d": '[1, "x"]', "e": None}


@pytest.mark.parametrize("name", ["../../out", ".hidden", "a/b", "plain"])
def test_artifacts_stay_beside_the_store_whatever_the_experiment_is_called(name, uri, tmp_path):
    with write.run(tracking.connect(uri), name, "n", TAGS, {}) as run:
        run.text("x", "note.txt")
    (note,) = tmp_path.rglob("note.txt")
    assert note.is_relative_to(tmp_path / "deep" / "mlruns")
    assert len(note.relative_to(tmp_path / "deep" / "mlruns").parts) == 4


def test_an_experiment_without_a_name_or_a_deleted_one_is_refused(uri):
    client = tracking.connect(uri)
    with pytest.raises(UserError, match=r"tracking.experiment= is not possible"):
        write.run(client, "", "n", TAGS, {}).__enter__()
    client.delete_experiment(client.create_experiment("old"))
    with pytest.raises(UserError, match=r"tracking.experiment=old was deleted .*another name"):
        write.run(client, "old", "n", TAGS, {}).__enter__()


def away(client, monkeypatch, failures):
    """A store that refuses so many calls from now on."""
    left = iter(range(failures))

    def failing(own):
        def call(*given, **named):
            if next(left, None) is not None:
                raise ConnectionError("no route to host\nsome trace")
            return own(*given, **named)

        return call

    for name in ("log_batch", "log_artifact"):
        monkeypatch.setattr(client, name, failing(getattr(client, name)))


def test_a_store_that_is_away_for_a_while_gets_everything_later(uri, monkeypatch, caplog):
    client = tracking.connect(uri)
    monkeypatch.setattr(write, "PAUSE", 0)
    with write.run(client, "mine", "n", TAGS, {}) as run:
        away(client, monkeypatch, failures=2)
        for step in range(3):
            run.metrics(step, {"cost/flops": 10 - step}, at=1000.5)
        run.text("hello", "note.txt")
    found = client.get_run(run.run_id)
    assert found.info.status == "FINISHED"
    history = client.get_metric_history(run.run_id, "cost/flops")
    assert [(m.step, m.value, m.timestamp) for m in history] == [
        (0, 10, 1000500),
        (1, 9, 1000500),
        (2, 8, 1000500),
    ]
    assert [file.path for file in client.list_artifacts(run.run_id)] == ["note.txt"]
    assert caplog.text.count("does not take what was measured (no route to host)") == 2


def test_a_store_is_not_asked_again_and_again(uri, monkeypatch):
    client, asked = tracking.connect(uri), []
    with write.run(client, "mine", "n", TAGS, {}) as run:
        own = client.log_batch

        def failing(*given, **named):
            asked.append(1)
            if len(asked) == 1:
                raise ConnectionError
            return own(*given, **named)

        monkeypatch.setattr(client, "log_batch", failing)
        for step in range(5):
            run.metrics(step, {"cost/flops": 1})
        assert len(asked) == 1
    assert len(asked) == 1 + 5


def test_a_store_that_does_not_come_back_fails_the_run_and_says_that_nothing_is_lost(
    uri, monkeypatch
):
    client = tracking.connect(uri)
    monkeypatch.setattr(write, "PATIENCE", (0, 0))
    entered = write.run(client, "mine", "n", TAGS, {})
    run = entered.__enter__()
    away(client, monkeypatch, failures=100)
    run.metrics(0, {"cost/flops": 1})
    message = r"does not take what was measured: no route to host\. Nothing is lost: run the same"
    with pytest.raises(UserError, match=message):
        entered.__exit__(None, None, None)
    assert client.get_run(run.run_id).info.status == "FAILED"


def test_a_run_that_was_cut_off_is_continued_and_no_point_is_doubled(uri):
    client, tags = tracking.connect(uri), TAGS | {keys.CHECKPOINT: "abc"}
    runs = []
    for error in (ValueError("odd"), None):
        with (
            pytest.raises(ValueError, match="odd") if error else nullcontext(),
            write.run(client, "mine", "n", tags, {"a": 1 if error else 2}) as run,
        ):
            runs.append(run.run_id)
            assert client.get_run(run.run_id).info.status == "RUNNING"
            assert "error" not in client.get_run(run.run_id).data.tags
            run.metrics(5, {"cost/flops": 7}, at=1000.5)
            if error:
                raise error
    assert runs[0] == runs[1]
    found = client.get_run(runs[0])
    assert found.info.status == "FINISHED"
    assert found.data.params == {"a": "1"}  # what a run was begun with stays
    assert len(client.get_metric_history(runs[0], "cost/flops")) == 1
    other = tags | {keys.CHECKPOINT: "def"}
    with write.run(client, "mine", "n", other, {}) as run:
        assert run.run_id != runs[0]


def test_an_exit_is_an_interruption(uri):
    client = tracking.connect(uri)
    with pytest.raises(SystemExit), write.run(client, "mine", "n", TAGS, {}) as run:
        raise SystemExit(-1)  # of a scheduler, that will start the job again
    assert client.get_run(run.run_id).info.status == "KILLED"


def test_half_a_database_of_a_killed_process_is_no_obstacle(uri, tmp_path):
    file = tmp_path / "deep" / "mlflow.db"
    file.parent.mkdir()
    with closing(sqlite3.connect(file.with_name(".mlflow.db.part"))) as database:
        database.execute("create table _alembic_tmp_experiments (x)")
    file.touch()
    tracking.connect(uri)
    with closing(sqlite3.connect(file)) as database:
        assert database.execute("pragma journal_mode").fetchone() == ("wal",)
    assert not file.with_name(".mlflow.db.part").exists()


@given(st.text(max_size=300))
@example("width/conv(3,3)")
@example("../a//./b/")
@example("a\n")
@example("")
def test_every_name_of_a_layer_becomes_a_key_that_mlflow_takes(name):
    key = keys.chart_key("width", f"width/{name}")
    _validate_metric_name(key)
    assert len(key) <= 250
    assert keys.permitted(key) == key


def test_two_names_stay_two_and_ordinary_ones_stay_as_they_are():
    names = ["conv(3,3)", "conv[3,3]", "conv_3_3_", "a/b", "a//b", "x" * 300, "x" * 301]
    made = [keys.permitted(name) for name in names]
    assert len(set(made)) == len(names)
    assert made[2] == "conv_3_3_"
    assert made[3] == "a/b"


class Refusing:
    """A store that does not take some keys, whoever sends them and whenever."""

    tracking_uri = "http://refusing"

    def __init__(self):
        self.taken = []

    def log_batch(self, run_id, metrics=(), params=()):
        if any("bad" in each.key for each in (*metrics, *params)):
            raise MlflowException("Invalid key", INVALID_PARAMETER_VALUE)
        self.taken += [each.key for each in (*metrics, *params)]


def test_what_is_refused_for_good_is_left_out_alone_and_said(caplog):
    store = Refusing()
    run = write.Run(store, "1")
    run.metrics(0, {"accuracy/one": 0.5, "cost/bad": 1, "loss/one": 2})
    run.metrics(100, {"accuracy/one": 0.4})
    run.deliver()
    assert store.taken == ["accuracy/one", "loss/one", "accuracy/one"]
    assert "MLflow does not take 'cost/bad', and it is left out there" in caplog.text


def moved(tmp_path, how):
    old, new = tmp_path / "cluster", tmp_path / "laptop"
    old.mkdir()
    with write.run(tracking.connect(f"sqlite:///{old}/m.db"), "mine", "a", {}, {}) as run:
        run.text("then", "note.txt")
    how(old, new)
    return run.run_id, f"sqlite:///{new}/m.db", old, new


@pytest.mark.parametrize("how", [shutil.move, shutil.copytree])
def test_a_store_that_was_moved_or_copied_reads_and_writes_its_own_files(tmp_path, how):
    run_id, uri, old, new = moved(tmp_path, how)
    client = tracking.connect(uri)
    assert client.get_run(run_id).info.artifact_uri.startswith(new.as_uri())
    with write.run(client, "mine", "b", {}, {}) as run:
        run.text("now", "note.txt")
    assert sorted(p.read_text() for p in new.rglob("note.txt")) == ["now", "then"]
    assert [p.read_text() for p in old.rglob("note.txt")] == ["then"] * old.exists()


def test_a_database_alone_leaves_its_files_where_they_are(tmp_path):
    def database_alone(old, new):
        new.mkdir()
        for file in old.glob("m.db*"):
            shutil.move(file, new / file.name)

    run_id, uri, old, _ = moved(tmp_path, database_alone)
    assert tracking.connect(uri).get_run(run_id).info.artifact_uri.startswith(old.as_uri())


def test_a_finished_run_without_its_files_is_none(tmp_path):
    uri = f"sqlite:///{tmp_path}/m.db"
    with write.run(tracking.connect(uri), "mine", "a", {keys.IDENTITY: "abc"}, {}) as run:
        run.metrics(0, {"rmse/test_rmse_after": 0.5, "rmse/val_rmse_after": 0.4})
        run.text("step\n0\n", keys.STEPS)
    rmse = Measure("rmse", higher_is_better=False)
    (found,) = read.find_finished(uri, "mine", "abc", rmse)
    assert (found.run_id, found.test, found.val) == (run.run_id, 0.5, 0.4)
    assert read.find_finished(uri, "mine", "abc", Measure("accuracy", True)) == []
    (steps,) = tmp_path.rglob(keys.STEPS)
    steps.unlink()
    assert read.find_finished(uri, "mine", "abc", rmse) == []


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite://mlflow.db",
        "sqlite:mlflow.db",
        "sqlite:/mlflow.db",
    ],
)
def test_an_address_without_a_file_is_refused(uri):
    with pytest.raises(UserError, match=f"{uri} names no file: runs would be lost"):
        tracking.connect(uri)


@pytest.mark.parametrize("uri", [
    "sqlite:///a?b.db", "sqlite:///a%3Fb.db", "sqlite:///a%2541.db", "sqlite:///m.db?mode=ro",
    "sqlite:///file:m.db?uri=true", "sqlite:///~nobody_here/m.db", "SQLITE:///m.db",
    "sqlite+other:///m.db", "sqlite://host/m.db",
])  # fmt: skip
def test_an_address_that_would_be_read_in_two_ways_is_refused(uri):
    with pytest.raises(UserError, match=f"{re.escape(uri)} is not possible: give sqlite:///FILE"):
        tracking.connect(uri)


@pytest.mark.parametrize(
    ("uri", "file"),
    [
        ("sqlite:///my%20runs.db", "my runs.db"),
        ("sqlite:///a b/runs#2.db", "a b/runs#2.db"),
        ("sqlite:///100%.db", "100%.db"),
        ("sqlite:///~/m.db", "home/m.db"),
        ("sqlite+pysqlite:///m.db?timeout=60", "m.db"),
        ("sqlite:////{folder}/m.db", "m.db"),
    ],
)
def test_an_address_means_one_file_to_all(uri, file, tmp_path, monkeypatch):
    uri, place = uri.format(folder=str(tmp_path)[1:]), tmp_path / file
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    url = sqlalchemy.make_url(store.address(uri))
    assert Path(store.sqlite_file(uri)).resolve() == place == Path(url.database).resolve()


def test_an_address_with_odd_characters_leads_to_one_database(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    place = tmp_path / "my runs" / "100% #2.db"
    place.parent.mkdir()
    shutil.copy(empty_store(), place)
    client = tracking.connect("sqlite:///~/my%20runs/100%%20#2.db")
    client.create_experiment("here")
    with closing(sqlite3.connect(place)) as database:
        assert ("here",) in database.execute("select name from experiments").fetchall()
    assert [each for each in tmp_path.rglob("*.db") if each.is_file()] == [place]
    assert list(tmp_path.iterdir()) == [place.parent]


def test_a_relative_address_follows_the_process(tmp_path, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        shutil.copy(empty_store(), "m.db")
        tracking.connect("sqlite:///m.db").create_experiment(name)
    assert tracking.connect("sqlite:///m.db").get_experiment_by_name("one") is None
    assert tracking.connect(f"sqlite:///{tmp_path}/one/m.db").get_experiment_by_name("one")


def test_mlflows_own_experiment_has_its_files_beside_the_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with write.run(tracking.connect("sqlite:///st/m.db"), "Default", "a", {}, {}) as run:
        run.text("here", "note.txt")
    assert [p.read_text() for p in (tmp_path / "st").rglob("note.txt")] == ["here"]
    assert not (tmp_path / "mlruns").exists()


def test_an_experiment_of_a_long_name_has_files(tmp_path):
    client = tracking.connect(f"sqlite:///{tmp_path}/m.db")
    for name in ("x" * 299 + "y", "x" * 300):
        with write.run(client, name, "a", {}, {}) as run:
            run.text(name, "note.txt")
    assert len(list(tmp_path.rglob("note.txt"))) == 2


def test_names_in_figures_are_no_formulas(tmp_path):
    figure = Figure()
    figure.subplots().set_title("w$_$")
    with write.run(tracking.connect(f"sqlite:///{tmp_path}/m.db"), "mine", "a", {}, {}) as run:
        run.figure(figure, "odd")
    assert len(list(tmp_path.rglob("odd.png"))) == 1


def test_runs_of_no_experiment_are_refused(tmp_path):
    with pytest.raises(UserError, match="Name one experiment or more"):
        tracking.read_runs(f"sqlite:///{tmp_path}/mlflow.db")
