"""``python ...`` in a process of its own that need not import torch, torchvision and MLflow first.

It is forked from a server that has imported them and nothing else; they take most of the time of a
short command.
"""

import multiprocessing
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(
    [
        "pruning_lab.experiment.runner",
        "pruning_lab.experiment.sweep",
        "pruning_lab.compare",
        "pruning_lab.ground_truth.tables",
    ]
)


def python(folder: Path, *arguments: str) -> CompletedProcess:
    """Run ``python ARGUMENTS`` in ``folder``; the first one is ``-m`` or ``-c``."""
    with TemporaryDirectory() as place:
        files = [Path(place, name) for name in ("out", "err")]
        job = FORKED.Process(target=_run, args=(folder, files, arguments, dict(os.environ)))
        job.start()
        job.join()
        out, err = (file.read_text() for file in files)
    return CompletedProcess(["python", *arguments], job.exitcode, out, err)


def _run(
    folder: Path, files: Sequence[Path], arguments: Sequence[str], variables: dict[str, str]
) -> None:
    for number, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    flag, what, *rest = arguments
    sys.path[0] = str(folder)
    sys.argv = [flag, *rest]
    if flag == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
