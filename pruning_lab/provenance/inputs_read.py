"""Record what this process reads, so that a cached result is reused only while that is unchanged.

A result's name covers everything that is known beforehand. Code may read more: a module under a
computed name, a file in a constructor, an environment variable. What was read is stored with the
result, and compared with the present state when the result is requested again. Variables are
recorded during a job (``provenance.environment``), files only inside ``watching``.
"""

import hashlib
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from pruning_lab.provenance.environment import VARIABLE, digest_of_variable, variables, working
from pruning_lab.provenance.source_code import INSTALLED, bytes_of, file_of, is_installed, is_own
from pruning_lab.runtime.model_state import evaluating, state_kept
from pruning_lab.runtime.random_streams import seed_all, streams_kept

SYSTEM = ("/proc", "/sys", "/dev", "/etc")
"""Folders whose files differ between machines; they are ignored."""

ANSWERS = 64
"""Maximum number of values kept of each output tensor."""

TOLERANCE = 1e-3
"""Allowed difference between two machines' outputs, as a share of the largest absolute value."""

MODULE, BESIDE = "module ", "beside "

_depth = 0
_opened: set[tuple[str, bool]] = set()
_files: dict[str, str] = {}
_modules: dict[str, str] = {}


@dataclass(frozen=True)
class Seen:
    """The inputs of a result that its name does not cover.

    ``answer``: outputs of the untrained network for a fixed input, which reveal a change that was
    not recorded otherwise. ``read``: hashes of what was read for the result, by label; None for
    everything that the process has read when it is asked.
    """

    answer: list[list[float]]
    read: Mapping[str, str] | None = None

    def also(self, read: Mapping[str, str]) -> "Seen":
        """Return a copy with ``read`` added."""
        return Seen(self.answer, {**self.by_now()["inputs"], **read})

    def by_now(self) -> dict[str, Any]:
        """Return what to store with a result, as of now."""
        return {"inputs": inputs() if self.read is None else dict(self.read), "answer": self.answer}

    def changed_since(self, kept: Mapping[str, Any] | None) -> str | None:
        """Return why a result stored with ``kept`` is out of date; None if it is up to date."""
        if kept is None:
            return "it does not say what it was computed from"
        for label, digest in kept["inputs"].items():
            if (now := _digest_now(label)) != digest:
                return f"{label} {'has changed since' if now else 'is not there any more'}"
        if len(kept["answer"]) != len(self.answer) or not all(
            map(_alike, kept["answer"], self.answer)
        ):
            return "the network, before any training, gives other outputs than it did then"
        return None

    def is_outdated(self) -> bool:
        """Return True if a variable that was read has a new value that was not read yet."""
        read = (self.read or {}).items()
        return any(_digest_now(k) != digest for k, digest in read if k.startswith(VARIABLE))


def _alike(then: list[float], now: list[float]) -> bool:
    """Return True if two outputs are equal up to rounding."""
    old, new = torch.tensor(then), torch.tensor(now)
    finite = old[old.isfinite()].abs()
    bound = TOLERANCE * finite.max().item() if len(finite) else 0.0
    return old.shape == new.shape and torch.allclose(old, new, 0, bound, True)


@contextmanager
def watching() -> Iterator[None]:
    """Record the files opened inside the block, with their hashes at its end, and the variables."""
    global _depth
    _depth += 1
    try:
        with working():
            yield
    finally:
        _depth -= 1
        if not _depth:
            imported = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
            for path, relative in sorted(_opened):
                label = _label(path, relative)
                if path not in imported and (digest := _digest(label)) is not None:
                    _files[label] = digest
            _opened.clear()


@torch.no_grad()
def look_at(model: nn.Module, x: torch.Tensor) -> Seen:
    """Record the outputs of ``model``, not trained yet, for ``x``; restore its weights.

    In eval mode as it is; then, since layers may start at 0, with perturbed weights in eval and in
    training mode.
    """
    weights = [(p, p.detach().clone()) for p in model.parameters() if not p.is_meta]
    with streams_kept(), state_kept(model), evaluating(model):
        try:
            answer = [_answer(model, x)]
            seed_all(0)
            for parameter, value in weights:
                if parameter.is_floating_point():
                    parameter.add_(0.1 * (value.std(correction=0) + 0.1) * torch.randn_like(value))
            answer.append(_answer(model.eval(), x))
            try:
                answer.append(_answer(model.train(), x))
            except Exception:  # the user's code may raise anything there, and need not run
                answer.append([])
        finally:
            for parameter, value in weights:
                parameter.copy_(value)
    return Seen(answer)


def _answer(model: nn.Module, x: torch.Tensor) -> list[float]:
    """Return the first numbers of each output tensor, in one list."""
    seed_all(0)  # some models draw random numbers even in eval mode
    leaves = [leaf for leaf in tree_leaves(model(x.clone())) if isinstance(leaf, torch.Tensor)]
    return [n for leaf in leaves for n in leaf.double().flatten()[:ANSWERS].tolist()]


def inputs() -> dict[str, str]:
    """Return hashes, by label, of the user's imported modules and the recorded files and variables.

    Those of earlier jobs in this process are included; a change in one of those is a false alarm.
    """
    for name in list(sys.modules):
        # a script is called __main__, and __mp_main__ in a process that it starts
        program = name.startswith("__") or is_own(name)
        if program or MODULE + name in _modules or is_installed(name):
            continue
        if (digest := _digest(MODULE + name)) is not None:
            _modules[MODULE + name] = digest
    return dict(sorted((_modules | _files | variables()).items()))


def _label(path: str, relative: bool) -> str:
    """Return a file's label, which stays valid when the project is moved.

    A file that was not opened by a relative path is named from the folder of a user's module that
    contains it; any other from the working folder or the home folder, if it is in one of them.
    """
    if not relative:
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None)
            folder = Path(file).parent if file and not is_installed(name) else None
            if folder and not is_own(name) and Path(path).is_relative_to(folder):
                return f"{BESIDE}{name}: {Path(path).relative_to(folder)}"
    for place, short in ((Path.cwd(), ""), (Path.home(), "~/")):
        if Path(path).is_relative_to(place):
            return short + str(Path(path).relative_to(place))
    return path


def _digest_now(label: str) -> str | None:
    """Return the hash now; of a recorded module the recorded one, even if it was edited since."""
    return _modules.get(label) or _digest(label)


def _digest(label: str) -> str | None:
    """Return the hash of a module's file, a file or a variable; None if there is no such file."""
    if label.startswith(VARIABLE):
        return digest_of_variable(label)
    if label.startswith(MODULE):
        content = bytes_of(file_of(label.removeprefix(MODULE)))
        return None if content is None else hashlib.sha256(content).hexdigest()[:16]
    path = Path(label).expanduser()
    if label.startswith(BESIDE):
        name, _, rest = label.removeprefix(BESIDE).partition(": ")
        path = Path(file_of(name) or "").parent / rest
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    """Record a file that is opened for reading; Python calls this audit hook for every file."""
    if not _depth or event != "open" or not isinstance(arguments[0], str | bytes):
        return
    given, flags = os.fsdecode(arguments[0]), arguments[2]
    path = os.path.abspath(given)  # noqa: PTH100  (a link may lead elsewhere later)
    reads = not (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR))
    places = (*INSTALLED, *SYSTEM, str(Path(__file__).parents[1]))
    if reads and not path.endswith(".pyc") and not path.startswith(places):
        _opened.add((path, not os.path.isabs(given)))  # noqa: PTH117


sys.addaudithook(_hear)
