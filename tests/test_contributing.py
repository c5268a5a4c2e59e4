"""CONTRIBUTING.md, followed to the letter."""

import re
import shlex
from pathlib import Path

import pytest

from pruning_lab import tracking
from tests.commands import python

PAGE = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
FILE = re.compile(
    r"^`([\w/]+\.(?:py|yaml))`[^`]*?(?:`[^`]*`[^`]*?)*?^```\w+\n(.*?)^```$", re.M | re.S
)


@pytest.fixture(scope="module")
def frame(tmp_path_factory):
    """The rows of the run of the page's command, in a folder with the page's files."""
    folder = tmp_path_factory.mktemp("contributing")
    files = dict(FILE.findall(PAGE))
    assert len(files) == 10
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    (command,) = re.findall(r"^```\n(python .*)\n```$", PAGE, re.MULTILINE)
    done = python(folder, *shlex.split(command)[1:], "threads=1", "attributions=none")
    assert done.returncode == 0, done.stderr[-3000:]
    return tracking.read_runs(f"sqlite:///{folder}/mlflow.db", "pruning_lab")


def test_a_run_of_what_the_page_adds_goes_by_its_measure_and_schedule(frame):
    about = frame.iloc[0]
    assert [about[key] for key in ("metric", "model", "dataset", "schedule")] == [
        "loudest", "tiny", "wave", "halving",
    ]  # fmt: skip
    assert [about["measure"], about["measure_better"]] == ["median_error", "lower"]
    wanted = [0, 0.25, 0.375, 0.5]
    for removed, share in zip(frame["removed_flops"], wanted, strict=True):
        assert share <= removed < share + 1 / 16 + 1e-9
    assert frame["test_median_error_after"].between(0, 1).all()
    assert {"test_rmse_after", "val_median_error_cut", "val_loss_after"} <= set(frame)
