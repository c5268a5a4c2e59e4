"""What this process was seen to read, so that a kept result is used only while that is as it was.

A result is named by all that can be told beforehand. Code may still read what nobody can tell: a
module under a computed name, a file in a constructor, an environment variable. What was seen is
kept beside the result, and held against what is there when the result is asked for again. Variables
are noted while a job is worked on (``pruning_lab.environment``), files only inside ``watching``.
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

from pruning_lab.environment import VARIABLE, digest_of_variable, variables, working
from pruning_lab.modes import evaluating, state_kept
from pruning_lab.random_streams import seed_all, streams_kept
from pruning_lab.sources import INSTALLED, OWN, bytes_of, file_of, is_installed

SYSTEM = ("/proc", "/sys", "/dev", "/etc")
"""What lies here is of the machine, and no two are alike."""

ANSWERS = 64
"""How many numbers of a network's output are kept."""

TOLERANCE = 1e-3
"""Two machines give the same output up to this share of its largest number."""

MODULE, BESIDE = "module ", "beside "

_depth = 0
_opened: set[tuple[str, bool]] = set()
_files: dict[str, str] = {}
_modules: dict[str, str] = {}


@dataclass(frozen=True)
class Seen:
    """What a result is computed from, beyond what names it.

    ``answer`` is what the fresh network gives for a fixed input: it tells of whatever decides what
    the code does and was not seen otherwise. ``read`` are hashes of what was read for it; None
    stands for all that the process has read by the time it is asked.
    """

    answer: list[list[float]]
    read: Mapping[str, str] | None = None

    def also(self, read: Mapping[str, str]) -> "Seen":
        """The same where this was read, too."""
        return Seen(self.answer, {**self.by_now()["inputs"], **read})

    def by_now(self) -> dict[str, Any]:
        """What is kept beside a result."""
        return {"inputs": inputs() if self.read is None else dict(self.read), "answer": self.answer}

    def changed_since(self, kept: Mapping[str, Any] | None) -> str | None:
        """Why a result with ``kept`` is not what would come out now; None where it is."""
        if kept is None:
            return "it does not say what it was computed from"
        for label, digest in kept["inputs"].items():
            if (now := _digest_now(label)) != digest:
                return f"{label} {'has changed since' if now else 'is not there any more'}"
        if len(kept["answer"]) != len(self.answer) or not all(
            map(_alike, kept["answer"], self.answer)
        ):
            return "the network, before any training, gives other outputs than then"
        return None

    def is_outdated(self) -> bool:
        """Whether a variable that was read has another value by now, which nobody has read yet."""
        read = (self.read or {}).items()
        return any(_digest_now(k) != digest for k, digest in read if k.startswith(VARIABLE))


def _alike(then: list[float], now: list[float]) -> bool:
    """Whether two outputs are the same but for rounding."""
    one, other = torch.tensor(then), torch.tensor(now)
    finite = one[one.isfinite()].abs()
    bound = TOLERANCE * finite.max().item() if len(finite) else 0.0
    return one.shape == other.shape and torch.allclose(one, other, 0, bound, True)


@contextmanager
def watching() -> Iterator[None]:
    """Note the files that are opened inside, with their hashes at the end, and the variables."""
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
    """Take down what ``model``, not trained yet, makes of ``x``.

    In eval mode as it is; then, since layers may begin at 0, with other weights, in both modes.
    """
    weights = [(p, p.detach().clone()) for p in model.parameters() if not p.is_meta]
    with streams_kept(), state_kept(model), evaluating(model):
        try:
            answer = [_answer(model, x)]
            seed_all(0)
            for parameter, value in weights:
                if parameter.is_floating_point():
                    parameter.add_(0.1 * (value.std(correction=0) + 0.1) * torch.randn_like(value))
            answer += [_answer(model.eval(), x), _answer_in_training(model, x)]
        finally:
            for parameter, value in weights:
                parameter.copy_(value)
    return Seen(answer)


def _answer_in_training(model: nn.Module, x: torch.Tensor) -> list[float]:
    """The same in training mode; nothing of a model that cannot run there, which need not."""
    try:
        return _answer(model.train(), x)
    except Exception:  # the user's code: anything may be raised
        return []


def _answer(model: nn.Module, x: torch.Tensor) -> list[float]:
    """The first numbers of each tensor that the model gives."""
    seed_all(0)  # some draw even in eval mode
    leaves = [each for each in tree_leaves(model(x.clone())) if isinstance(each, torch.Tensor)]
    return [n for each in leaves for n in each.double().flatten()[:ANSWERS].tolist()]


def inputs() -> dict[str, str]:
    """Hashes of the user's modules that are imported, and of the files and variables noted.

    In a process of several jobs also those of earlier ones: a change is then seen once too often.
    """
    for name in list(sys.modules):
        # a program is called __main__, and __mp_main__ in a process that it starts
        program = name.startswith("__") or name.partition(".")[0] == OWN
        if program or MODULE + name in _modules or is_installed(name):
            continue
        if (digest := _digest(MODULE + name)) is not None:
            _modules[MODULE + name] = digest
    return dict(sorted((_modules | _files | variables()).items()))


def _label(path: str, relative: bool) -> str:
    """A name of a file that stays when the project is elsewhere.

    One that was opened by a relative path is found from the folder of work; another one beside the
    module of the user's in whose folder it lies, or in the home.
    """
    if not relative:
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None)
            folder = Path(file).parent if file and not is_installed(name) else None
            if folder and name.partition(".")[0] != OWN and Path(path).is_relative_to(folder):
                return f"{BESIDE}{name}: {Path(path).relative_to(folder)}"
    for place, short in ((Path.cwd(), ""), (Path.home(), "~/")):
        if Path(path).is_relative_to(place):
            return short + str(Path(path).relative_to(place))
    return path


def _digest_now(label: str) -> str | None:
    """The same of a module as it was imported, whoever has edited it meanwhile."""
    return _modules.get(label) or _digest(label)


def _digest(label: str) -> str | None:
    """The hash of a module's file, a file or a variable; None where there is no such file."""
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
    """Python tells here of every file that it opens."""
    if not _depth or event != "open" or not isinstance(arguments[0], str | bytes):
        return
    given, flags = os.fsdecode(arguments[0]), arguments[2]
    path = os.path.abspath(given)  # noqa: PTH100  (a link may lead elsewhere later)
    reads = not (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR))
    places = (*INSTALLED, *SYSTEM, str(Path(__file__).parent))
    if reads and not path.endswith(".pyc") and not path.startswith(places):
        _opened.add((path, not os.path.isabs(given)))  # noqa: PTH117


sys.addaudithook(_hear)
