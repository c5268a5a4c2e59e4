"""Faults that can strike during a run; every function returns a hook that installs one.

A fault that strikes creates a file ``struck``; without it, the run ended before the fault.
"""

import builtins
import errno
import io
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlflow.tracking import MlflowClient

from experiments.faults.trial import Prepare
from pruning_lab.datasets.splits import Images
from pruning_lab.runtime import files
from pruning_lab.tracking import write

STRUCK = "struck"
MLFLOW = ("create_experiment", "create_run", "delete_tag", "get_experiment_by_name", "get_run",
          "log_artifact", "log_artifacts", "log_batch", "search_experiments", "search_runs",
          "set_tag", "set_terminated", "update_run")  # fmt: skip
"""Methods of MLflow's client that new, failed and resumed runs call."""


def broken_write(number: int, how: str) -> Prepare:
    """Break the write of checkpoint, baseline, scores or model with this number.

    ``how`` names an errno; ``torn`` kills the process when half of the file is on the disk.
    """

    def prepare() -> None:
        count, original = iter(range(10**6)), files.to_disk

        def to_disk(path: Any) -> None:
            if path.suffix == ".part" and next(count) == number:
                if how == "torn":
                    Path(STRUCK).touch()
                    os.truncate(path, path.stat().st_size // 2)
                    os.kill(os.getpid(), signal.SIGKILL)
                _fail(getattr(errno, how))
            original(path)

        files.to_disk = to_disk

    return prepare


def broken_output(number: int, how: str) -> Prepare:
    """Break the opening for writing of the file with this number in the run's output folder."""

    def prepare() -> None:
        count, original, outputs = iter(range(10**6)), io.open, Path("outputs").absolute()

        def opened(file: Any, mode: str = "r", *given: Any, **named: Any) -> Any:
            inside = not isinstance(file, int) and outputs in Path(file).absolute().parents
            if inside and {*mode} & {*"wax+"} and next(count) == number:
                _fail(getattr(errno, how))
            return original(file, mode, *given, **named)

        builtins.open = io.open = opened

    return prepare


def broken_store(number: int, once: bool) -> Prepare:
    """Break the call of MLflow with this number; unless ``once``, all later ones as well."""

    def prepare() -> None:
        count = iter(range(10**6))
        write.PATIENCE = (0,)

        def failing(own: Callable[..., Any]) -> Callable[..., Any]:
            def call(*given: Any, **named: Any) -> Any:
                now = next(count)
                if now == number or (now > number and not once):
                    _fail(errno.ENOSPC)
                return own(*given, **named)

            return call

        for name in MLFLOW:
            setattr(MlflowClient, name, failing(getattr(MlflowClient, name)))

    return prepare


def broken_data(number: int) -> Prepare:
    """Make the batch with this number unreadable."""

    def prepare() -> None:
        count, original = iter(range(10**6)), Images.__getitem__

        def read(self: Images, index: Any) -> Any:
            if next(count) == number:
                _fail(errno.EIO)
            return original(self, index)

        Images.__getitem__ = read  # type: ignore[method-assign]

    return prepare


def _fail(number: int) -> None:
    Path(STRUCK).touch()
    raise OSError(number, os.strerror(number))
