"""One run of the command in a fresh folder, and what it leaves there."""

import multiprocessing
import os
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pruning_lab import tracking
from pruning_lab.__main__ import run
from pruning_lab.track import OF_THE_MACHINE

RUN = ["model=convnet", "model.channels=[6,8]", "model.hidden=8", "dataset=digits", "threads=1",
       "attributions=cheap", "baseline.training.epochs=3", "schedule.steps=2",
       "finetune.epochs=2", "finetune.steps=null",
       "controls.untuned=true", "controls.scratch=true", "keep=all"]  # fmt: skip
Prepare = Callable[[], None]
"""Breaks something in the process of a run, before it begins."""


@dataclass
class Trials:
    """What became of the trials with one fault."""

    fault: str
    count: int = 0
    said: int | None = None
    equal: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, equal: bool, about: Path, said: bool | None = None) -> None:
        """One more: whether nothing was lost in the end, and whether the run told what was wrong.

        A run that was killed cannot tell.
        """
        self.count += 1
        self.equal += equal
        if said is not None:
            self.said = (self.said or 0) + said
        if not equal or said is False:
            self.problems.append(f"{about}: said={said} equal={equal}")

    @property
    def told(self) -> str:
        """How many said what was wrong; empty where none could."""
        return "" if self.said is None else str(self.said)


def begin(folder: Path, overrides: list[str], prepare: Prepare = lambda: None) -> Any:
    """The command in a process of its own, which ``prepare`` may break first.

    It is forked from this one: its second is not spent on imports.
    """

    def job() -> None:
        os.chdir(folder)
        out = os.open("said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # whatever stood in their place
        sys.argv = ["pruning_lab", *RUN, *overrides]
        prepare()
        run()

    folder.mkdir(parents=True, exist_ok=True)
    process = multiprocessing.get_context("fork").Process(target=job)
    process.start()
    return process


def finish(folder: Path, overrides: list[str], prepare: Prepare = lambda: None) -> int:
    """The command, waited for; its exit code."""
    process = begin(folder, overrides, prepare)
    process.join()
    return int(process.exitcode)


def said(folder: Path) -> str:
    """All that the commands in a folder printed."""
    file = folder / "said.txt"
    return file.read_text() if file.exists() else ""


def moment(folder: Path) -> str:
    """What a run was at when it was killed, by the last that it said."""
    lines = said(folder).splitlines()
    last = next((line for line in reversed(lines) if re.match(r"\d\d:\d\d:\d\d ", line)), "")
    at = [("scratch", "training from scratch"), ("untuned", "the untuned track"),
          ("Training", "training"), ("Scoring", "scoring"), ("Baseline", "scoring"),
          ("Step", "the steps"), ("Table|Figure|Pruned|MLflow", "the end")]  # fmt: skip
    return next((where for key, where in at if re.search(key, last)), "the beginning")


def left(folder: Path, uri: str | None = None) -> dict[str, Any]:
    """Curve, scores and pruned models of a folder's one finished run, and how many runs it has."""
    uri = uri or f"sqlite:///{folder / 'mlflow.db'}"
    client = tracking.connect(uri)
    number = client.get_experiment_by_name("pruning_lab").experiment_id
    runs = client.search_runs([number])
    frame = tracking.read_runs(uri, "pruning_lab")
    found: dict[str, Any] = {"runs": [each.info.status for each in runs]}
    if frame.empty:
        return found
    (run_id,) = frame["run_id"].unique()
    found["curve"] = frame.drop(columns=["run_id", *OF_THE_MACHINE])
    found["points"] = sorted(
        (key, point.step)
        for key in client.get_run(run_id).data.metrics
        for point in client.get_metric_history(run_id, key)
    )
    with tempfile.TemporaryDirectory() as place:
        whole = Path(client.download_artifacts(run_id, "", place))
        for path in sorted(whole.rglob("*")):
            if path.suffix in (".npz", ".safetensors"):
                found[str(path.relative_to(whole))] = content(path)
            elif path.is_file():  # a table with seconds in it, a picture: that it is there
                found[str(path.relative_to(whole))] = path.stat().st_size > 0
    return found


def expected(folder: Path, uri: str | None = None) -> dict[str, Any]:
    """What an undisturbed run left, which is all there."""
    found = left(folder, uri)
    assert found["runs"] == ["FINISHED"], found["runs"]
    assert {"curve", "points"} <= found.keys()
    for kind in (".npz", ".safetensors", ".png", ".csv"):
        assert any(key.endswith(kind) for key in found), kind
    return found


def content(path: Path) -> Any:
    """What is in a file, without the dates that archives have."""
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {key: arrays[key].tobytes() for key in arrays.files}
    return path.read_bytes()


def same(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Whether two runs left the same, bit for bit."""
    return found.keys() == expected.keys() and all(
        value.equals(expected[key]) if isinstance(value, pd.DataFrame) else value == expected[key]
        for key, value in found.items()
    )
