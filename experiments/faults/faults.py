"""What can break while a run goes on; every function returns what breaks it in its process.

A fault that strikes leaves a file ``struck`` behind: where there is none, the run went by without.
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
from pruning_lab import atomic
from pruning_lab.datasets.splits import Images
from pruning_lab.tracking import write

STRUCK = "struck"
MLFLOW = ("create_experiment", "create_run", "delete_tag", "get_experiment_by_name", "get_run",
          "log_artifact", "log_artifacts", "log_batch", "search_experiments", "search_runs",
          "set_tag", "set_terminated", "update_run")  # fmt: skip
"""All that a run, a new one, a failed one or one that goes on, calls of MLflow's client."""


def broken_write(number: int, how: str) -> Prepare:
    """The checkpoint, baseline, score file or model of this number: an errno, or ``torn``.

    A torn file ends the process when half of it is on the disk.
    """

    def prepare() -> None:
        count, own = iter(range(10**6)), atomic.to_disk

        def to_disk(path: Any) -> None:
            if path.suffix == ".part" and next(count) == number:
                if how == "torn":
                    Path(STRUCK).touch()
                    os.truncate(path, path.stat().st_size // 2)
                    os.kill(os.getpid(), signal.SIGKILL)
                _fail(getattr(errno, how))
            own(path)

        atomic.to_disk = to_disk

    return prepare


def broken_output(number: int, how: str) -> Prepare:
    """The file of this number that is opened for writing in the run's output folder."""

    def prepare() -> None:
        count, own, outputs = iter(range(10**6)), io.open, Path("outputs").absolute()

        def opened(file: Any, mode: str = "r", *given: Any, **named: Any) -> Any:
            inside = not isinstance(file, int) and outputs in Path(file).absolute().parents
            if inside and {*mode} & {*"wax+"} and next(count) == number:
                _fail(getattr(errno, how))
            return own(file, mode, *given, **named)

        builtins.open = io.open = opened

    return prepare


def broken_store(number: int, once: bool) -> Prepare:
    """The call of MLflow of this number, or all from there on."""

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
    """The batch of this number, which cannot be read."""

    def prepare() -> None:
        count, own = iter(range(10**6)), Images.__getitem__

        def read(self: Images, index: Any) -> Any:
            if next(count) == number:
                _fail(errno.EIO)
            return own(self, index)

        Images.__getitem__ = read  # type: ignore[method-assign]

    return prepare


def _fail(number: int) -> None:
    Path(STRUCK).touch()
    raise OSError(number, os.strerror(number))
