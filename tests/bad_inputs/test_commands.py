"""Comparisons that cannot be made, arguments that cannot be read, and how a process ends."""

import sys

import pytest

from pruning_lab.compare.__main__ import main as compare
from tests.commands import python

COMPARE = {
    "no store": (["--uri", "sqlite:///{folder}/no.db"], "no.db is not there"),
    "an unknown kind of store": (["--uri", "foo://bar"], "tracking.uri=foo://bar cannot be"),
    "a folder": (["--uri", "sqlite:///{folder}"], "is not there: no runs were recorded"),
    "text": (["--uri", "sqlite:///{folder}/text"], "text cannot be reached: .*not a database"),
    "nothing recorded": ([], "no experiment 'pruning_lab' in this store; there are: .*Default"),
    "nothing finished": (["--experiment", "Default"], "No run of Default .* is finished"),
    "a tag without a value": (["--tag", "metric"], "--tag metric is not NAME=VALUE"),
    "a tag of no run": (
        ["--experiment", "Default", "--tag", "metric=x"], "No run has the tag metric=x",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", COMPARE)
def test_comparisons_that_cannot_be_made(case, tmp_path, store, monkeypatch):
    (tmp_path / "text").write_text("no database")
    arguments, message = COMPARE[case]
    arguments = [each.format(folder=tmp_path) for each in arguments]
    monkeypatch.setattr(sys, "argv", ["compare", "--uri", f"sqlite:///{store}", *arguments])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=f"(?s){message}"):
        compare()
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--since", "yesterday"], "--since: yesterday is no day; write it as 2026-01-31"),
        (["--until", "2026-13-45"], "--until: 2026-13-45 is no day"),
        (["--experimnt", "x"], "unrecognized arguments: --experimnt x"),
        (["--uri"], "--uri: expected one argument"),
    ],
)
def test_arguments_that_cannot_be_read(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["compare", *arguments])
    with pytest.raises(SystemExit) as stopped:
        compare()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        ("pruning_lab", ["threads=1000000"], "threads=1000000 is not possible"),
        ("pruning_lab.compare", [], "mlflow.db is not there: no runs were recorded"),
    ],
)
def test_a_process_ends_with_one_message_and_status_1(module, arguments, message, tmp_path):
    done = python(tmp_path, "-m", module, *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "mlflow.db").exists()
    assert not (tmp_path / "baselines").exists()


def test_an_output_folder_that_cannot_be_made(tmp_path):
    done = python(tmp_path, "-m", "pruning_lab", "hydra.run.dir=/proc/nothing")
    assert done.returncode == 1
    assert done.stderr.endswith(
        "'/proc/nothing'. Run the same command again when that is mended: what was finished is "
        "kept.\n"
    )
