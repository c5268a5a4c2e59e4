"""Record the environment variables that the user's code reads while a job runs.

A read is recorded if the code that makes it belongs neither to an installed package nor to
pruning_lab. Only a hash of the value is stored, since the value may be a password. Iteration over
all variables (``dict(os.environ)``, ``os.environ.items()``) is ignored: it mostly copies them.
"""

import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from pruning_lab.provenance.source_code import INSTALLED, is_installed

VARIABLE = "environment "
"""Prefix of a variable's label; its name follows."""

UNSET = "not set"
"""Recorded instead of a hash if a variable is not set."""

OF_LAUNCHERS = (
    "SLURM", "SRUN_", "SBATCH_", "PBS_", "LSB_", "SGE_", "PMI", "OMPI_", "MPI_", "TORCHELASTIC_",
    "RAY_", "SUBMITIT_", "JOBLIB_", "SSH_", "XDG_", "PYTEST_",
)  # fmt: skip
"""Prefixes of variables that job launchers set differently for each job; ignored."""

OF_THE_JOB = frozenset((
    "RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE",
    "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT", "JOB_ID",
    "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "OMP_NUM_THREADS",
    "MKL_NUM_THREADS", "HOSTNAME", "HOME", "USER", "LOGNAME", "PWD", "OLDPWD", "SHLVL", "_", "PPID",
    "TMPDIR", "TMP", "TEMP", "TERM", "COLUMNS", "LINES", "DISPLAY", "PATH", "PYTHONPATH",
    "VIRTUAL_ENV",
))  # fmt: skip
"""Variables of the job, the machine and the terminal; ignored. The device, the number of processes
and the number of threads are already part of a result's name."""

PASSED = ("os", "collections.abc", "_collections_abc", __name__)
"""Standard modules on the call stack between a reader and ``os.environ``."""

_noted: dict[str, str] = {}
_set_by_driver: set[str] = set()  # outside a job, after they were recorded
_set_by_job: set[str] = set()
_listeners: list[dict[str, str]] = []
_listings: set[tuple[CodeType, int]] = set()
_read = type(os.environ).__getitem__  # the original, which records nothing


@contextmanager
def working() -> Iterator[dict[str, str]]:
    """Record reads inside the block; yield a dictionary from labels to hashes.

    Only the first read of a variable is recorded, unless it is set between two jobs (in a notebook,
    for example). Variables that the job sets before it reads them are ignored.
    """
    read: dict[str, str] = {}
    _listeners.append(read)
    try:
        yield read
    finally:
        _listeners.pop()


def variables() -> dict[str, str]:
    """Return the hashes of all variables recorded in this process, by label."""
    return dict(_noted)


def digest_of_variable(label: str) -> str:
    """Return the hash of the value that this process read, or of the current one; UNSET if none."""
    return _noted[label] if label in _noted.keys() - _set_by_driver else _digest(label)


def _digest(label: str) -> str:
    name = label.removeprefix(VARIABLE)
    try:
        value = _read(os.environ, name)
    except KeyError:
        return UNSET
    # hash the name, too: the hashes then do not show which variables have equal values
    return hashlib.sha256(os.fsencode(f"{name}={value}")).hexdigest()[:16]


def _hear(name: Any, written: bool) -> None:
    """Handle a read or a write of a variable, before it happens."""
    if not (_listeners or written) or not isinstance(name, str | bytes):
        return
    name = os.fsdecode(name)
    label = VARIABLE + name
    if not _listeners:
        if written:
            _set_by_driver.add(label)
            _set_by_job.discard(label)
        return
    frame, ignored = _frame_of_user(), name.startswith(OF_LAUNCHERS) or name in OF_THE_JOB
    if frame is None or (frame.f_code, frame.f_lasti) in _listings or ignored:
        return
    if written:
        if label not in _noted:
            _set_by_job.add(label)
    elif label not in _set_by_job:
        if label not in _noted or label in _set_by_driver:
            _noted[label] = _digest(label)
            _set_by_driver.discard(label)
        for read in _listeners:
            read.setdefault(label, _noted[label])


def _frame_of_user() -> FrameType | None:
    """Return the frame that uses ``os.environ`` if it runs the user's code, else None."""
    frame: FrameType | None = sys._getframe(1)
    while frame and frame.f_globals.get("__name__") in PASSED:
        frame = frame.f_back
    if frame is None:
        return None
    name = str(frame.f_globals.get("__name__", ""))
    return frame if _is_of_user(name, frame.f_code.co_filename) else None


@cache
def _is_of_user(module: str, file: str) -> bool:
    """Return True for code that belongs neither to an installed package nor to pruning_lab."""
    if file.startswith(("<frozen", *INSTALLED, f"{Path(__file__).parents[1]}{os.sep}")):
        return False
    # a script or a notebook is identified by its file
    return module.startswith("__") or module not in sys.modules or not is_installed(module)


def _listen() -> None:
    """Patch the class of ``os.environ``; ``in``, ``get``, ``getenv`` and ``pop`` go through it."""
    kind: Any = type(os.environ)

    def heard(plain: Callable[..., Any], written: bool) -> Callable[..., Any]:
        def method(self: Any, name: Any, *value: Any) -> Any:
            _hear(name, written)
            return plain(self, name, *value)

        return method

    def listed(self: Any, plain: Callable[[Any], Iterator[Any]] = kind.__iter__) -> Iterator[Any]:
        if _listeners and (frame := _frame_of_user()) is not None:
            _listings.add((frame.f_code, frame.f_lasti))
        return plain(self)

    kind.__getitem__ = heard(kind.__getitem__, False)
    kind.__setitem__ = heard(kind.__setitem__, True)
    kind.__delitem__ = heard(kind.__delitem__, True)
    kind.__iter__ = listed


_listen()
