"""What this process was seen to read, so that a kept result is used only while that is as it was.

A result is named by all that can be told beforehand. Code may still read what nobody can tell: a
module under a computed name, a file in a constructor, the environment. What was seen is kept beside
the result, and held against what is there when the result is asked for again.
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

from pruning_lab.modes import evaluating
from pruning_lab.random_streams import seed_all, streams_kept
from pruning_lab.sources import INSTALLED, OWN, file_of, is_installed

SYSTEM = ("/proc", "/sys", "/dev", "/etc")
"""What lies here is of the machine, and no two are alike."""

ANSWERS = 64
"""How many numbers of a network's output are kept."""

TOLERANCE = 1e-3
"""Two machines give the same output up to this share of its largest number."""

_depth = 0
_opened: set[str] = set()
_files: dict[str, str] = {}
_modules: dict[str, str] = {}
MODULE = "module "


@dataclass(frozen=True)
class Seen:
    """What a result is computed from, beyond what names it.

    ``answer`` is what the fresh network gives for a fixed input: it tells of the environment and of
    whatever else decides what the code does. All that was read is known to the process.
    """

    answer: list[float]

    def by_now(self) -> dict[str, Any]:
        """What is kept beside a result: hashes of all that was read so far, and the answer."""
        return {"inputs": inputs(), "answer": self.answer}

    def changed_since(self, kept: Mapping[str, Any] | None) -> str | None:
        """Why a result with ``kept`` is not what would come out now; None where it is."""
        if kept is None:
            return "it does not say what it was computed from"
        for label, digest in kept["inputs"].items():
            # of a module what was imported counts, whoever has edited it meanwhile
            if (now := _modules.get(label) or _digest(label)) != digest:
                return f"{label} {'has changed since' if now else 'is not there any more'}"
        then, now_given = torch.tensor(kept["answer"]), torch.tensor(self.answer)
        bound = TOLERANCE * then.abs().max().item() if len(then) else 0.0
        if then.shape != now_given.shape or not torch.allclose(then, now_given, 0, bound, True):
            return "the network, before any training, gives other outputs than then"
        return None


@contextmanager
def watching() -> Iterator[None]:
    """Note the files that are opened inside; their hashes are taken at the end."""
    global _depth
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        if not _depth:
            for path in sorted(_opened):
                label = _label(path)
                if (digest := _digest(label)) is not None:
                    _files[label] = digest
            _opened.clear()


def look_at(model: nn.Module, x: torch.Tensor) -> Seen:
    """Take down what ``model``, not trained yet, makes of ``x`` in eval mode."""
    with evaluating(model), torch.no_grad(), streams_kept():
        seed_all(0)  # some draw even then
        output = model(x)
    inputs()  # as they were imported
    return Seen(output.double().flatten()[:ANSWERS].tolist())


def inputs() -> dict[str, str]:
    """Hashes of the user's modules that are imported, and of the files that were noted.

    In a process of several jobs also those of earlier ones: a change is then seen once too often.
    """
    for name in list(sys.modules):
        new = name.partition(".")[0] not in (OWN, "__main__") and MODULE + name not in _modules
        if new and not is_installed(name) and (digest := _digest(MODULE + name)) is not None:
            _modules[MODULE + name] = digest
    return dict(sorted((_modules | _files).items()))


def _label(path: str) -> str:
    """A file's name that stays when the folder of work, or the home, is another."""
    for place, short in ((Path.cwd(), ""), (Path.home(), "~/")):
        if Path(path).is_relative_to(place):
            return short + str(Path(path).relative_to(place))
    return path


def _digest(label: str) -> str | None:
    """The hash of a module's file, or of a file; None where it is not there."""
    if label.startswith(MODULE):
        path = file_of(label.removeprefix(MODULE))
    else:
        path = str(Path(label).expanduser())
    if path is None or not Path(path).is_file():
        return None
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    """Python tells here of every file that it opens."""
    if not _depth or event != "open" or not isinstance(arguments[0], str | bytes):
        return
    path, flags = os.path.realpath(os.fsdecode(arguments[0])), arguments[2]
    reads = not (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR))
    places = (*INSTALLED, *SYSTEM, str(Path(__file__).parent))
    if reads and not path.endswith((".py", ".pyc")) and not path.startswith(places):
        _opened.add(path)


sys.addaudithook(_hear)
