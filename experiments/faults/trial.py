"""Run the command in a fresh folder, and read its results."""

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
from pruning_lab.records.step import OF_THE_MACHINE

RUN = ["model=convnet", "model.channels=[6,8]", "model.hidden=8", "dataset=digits", "threads=1",
       "attributions=cheap", "baseline.training.epochs=3", "schedule.steps=2",
       "finetune.epochs=2", "finetune.steps=null",
       "controls.untuned=true", "controls.scratch=true", "keep=all"]  # fmt: skip
Prepare = Callable[[], None]
"""Installs a fault in the process of a run, before it begins."""


@dataclass
class Trials:
    """Results of the trials with one fault."""

    fault: str
    count: int = 0
    said: int | None = None
    equal: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, equal: bool, about: Path, said: bool | None = None) -> None:
        """Add a trial: ``equal`` if nothing was lost in the end, ``said`` if it reported the fault.

        ``said`` is None for a killed run, which cannot report it.
        """
        self.count += 1
        self.equal += equal
        if said is not None:
            self.said = (self.said or 0) + said
        if not equal or said is False:
            self.problems.append(f"{about}: said={said} equal={equal}")

    @property
    def told(self) -> str:
        """Number of runs that reported the fault; empty if none could."""
        return "" if self.said is None else str(self.said)


def begin(folder: Path, overrides: list[str], prepare: Prepare = lambda: None) -> Any:
    """Start the command in a process of its own, in which ``prepare`` may install a fault first.

    The process is forked from this one, which saves the time of the imports.
    """

    def job() -> None:
        os.chdir(folder)
        out = os.open("said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # in case they were redirected
        sys.argv = ["pruning_lab", *RUN, *overrides]
        prepare()
        run()

    folder.mkdir(parents=True, exist_ok=True)
    process = multiprocessing.get_context("fork").Process(target=job)
    process.start()
    return process


def finish(folder: Path, overrides: list[str], prepare: Prepare = lambda: None) -> int:
    """Run the command to its end; return its exit code."""
    process = begin(folder, overrides, prepare)
    process.join()
    return int(process.exitcode)


def said(folder: Path) -> str:
    """Return the whole output of the commands in a folder."""
    file = folder / "said.txt"
    return file.read_text() if file.exists() else ""


def moment(folder: Path) -> str:
    """Return the stage at which a run was killed, judged by its last log line."""
    lines = said(folder).splitlines()
    last = next((line for line in reversed(lines) if re.match(r"\d\d:\d\d:\d\d ", line)), "")
    at = [("scratch", "training from scratch"), ("untuned", "the untuned track"),
          ("Training", "training"), ("Scoring", "scoring"), ("Baseline", "scoring"),
          ("Step", "the steps"), ("Table|Figure|Pruned|MLflow", "the end")]  # fmt: skip
    return next((where for key, where in at if re.search(key, last)), "the beginning")


def left(folder: Path, uri: str | None = None) -> dict[str, Any]:
    """Return curve, scores and models of a folder's finished run, and the status of all runs."""
    uri = uri or f"sqlite:///{folder / 'mlflow.db'}"
    client = tracking.connect(uri)
    number = client.get_experiment_by_name("pruning_lab").experiment_id
    runs = client.search_runs([number])
    frame = tracking.read_runs(uri, "pruning_lab")
    results: dict[str, Any] = {"runs": [entry.info.status for entry in runs]}
    if frame.empty:
        return results
    (run_id,) = frame["run_id"].unique()
    results["curve"] = frame.drop(columns=["run_id", *OF_THE_MACHINE])
    results["points"] = sorted(
        (key, point.step)
        for key in client.get_run(run_id).data.metrics
        for point in client.get_metric_history(run_id, key)
    )
    with tempfile.TemporaryDirectory() as place:
        root = Path(client.download_artifacts(run_id, "", place))
        for path in sorted(root.rglob("*")):
            if path.suffix in (".npz", ".safetensors"):
                results[str(path.relative_to(root))] = content(path)
            elif path.is_file():  # tables with seconds, figures: only that they are not empty
                results[str(path.relative_to(root))] = path.stat().st_size > 0
    return results


def expected(folder: Path, uri: str | None = None) -> dict[str, Any]:
    """Return the results of an undisturbed run; assert that they are complete."""
    results = left(folder, uri)
    assert results["runs"] == ["FINISHED"], results["runs"]
    assert {"curve", "points"} <= results.keys()
    for kind in (".npz", ".safetensors", ".png", ".csv"):
        assert any(key.endswith(kind) for key in results), kind
    return results


def content(path: Path) -> Any:
    """Return a file's content, without the dates in archives."""
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {key: arrays[key].tobytes() for key in arrays.files}
    return path.read_bytes()


def same(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Return True if two runs have the same results, bit for bit."""
    return found.keys() == expected.keys() and all(
        value.equals(expected[key]) if isinstance(value, pd.DataFrame) else value == expected[key]
        for key, value in found.items()
    )
