"""``python -m pruning_lab.cache``: what baselines and unfinished runs take on the disk."""

import argparse
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from pruning_lab.errors import UserError

NAME = re.compile(r"[0-9a-f]{12}(-[0-9]+)?")
"""The name of a cached folder: a hash, then a number if that hash was already in use."""

MARKS = {"baselines": "determinants.json", "checkpoints": "run.json"}
"""The kinds, and the file that a folder of each has: only such, named by a hash, are deleted."""

DAY = 86_400


@dataclass(frozen=True)
class Kept:
    """One folder: a trained baseline with its scores, or a run that is not finished."""

    kind: str
    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(stat.st_size for stat in self._files())

    @property
    def age(self) -> float:
        """Days since something was last written."""
        written = (stat.st_mtime for stat in self._files())
        return (time.time() - max(written, default=self.path.stat().st_mtime)) / DAY

    def _files(self) -> Iterator[os.stat_result]:
        for path in self.path.rglob("*"):
            with suppress(FileNotFoundError):  # a job at work renames its files
                if path.is_file():
                    yield path.stat()

    @property
    def about(self) -> str:
        """What it is of, as far as that can be read."""
        try:
            found = json.loads((self.path / MARKS[self.kind]).read_text())
            start = found.get("start", found)
            of = found.get("of") or {
                key: _last(start[key]["_target_"]) for key in ("model", "dataset")
            }
            parts = [of[key] for key in ("model", "dataset", "metric") if key in of]
            return " ".join([*parts, f"seed {start['seeds']['init']}"])
        except (OSError, ValueError, KeyError, TypeError):
            return "cannot be read"

    def clear(self) -> None:
        """Delete it; Timeout where a process is using it."""
        beside = self.path.with_suffix(".lock")
        with ExitStack() as held:
            for path in [*self.path.glob(".*.lock"), *([beside] if beside.exists() else [])]:
                held.enter_context(FileLock(path).acquire(blocking=False))
            shutil.rmtree(self.path)
        beside.unlink(missing_ok=True)


def kept(folders: dict[str, Path]) -> Iterator[Kept]:
    """All that is there, the baselines first."""
    for kind, folder in folders.items():
        for mark in sorted(folder.glob(f"*/{MARKS[kind]}")):
            if NAME.fullmatch(mark.parent.name):
                yield Kept(kind, mark.parent)


def chosen(found: Sequence[Kept], names: Sequence[str], days: float) -> list[Kept]:
    """Those of these names or kinds that nothing was written to for so many days."""
    known = {*MARKS, *(each.name for each in found)}
    if unknown := [name for name in names if name not in known]:
        raise UserError(
            f"There is no '{unknown[0]}' here; choose baselines, checkpoints, or names of the list."
        )
    return [each for each in found if {each.kind, each.name} & {*names} and each.age >= days]


def table(found: Sequence[Kept]) -> str:
    """Name, kind, what it is of, size and age; the sum below."""
    if not found:
        return "Nothing is kept here."
    frame = pd.DataFrame(
        [(e.name, e.kind, e.about, f"{e.size / 1e6:.1f}", f"{e.age:.1f}") for e in found],
        columns=["name", "kind", "of", "MB", "days"],
    )
    total = sum(each.size for each in found) / 1e6
    return f"{frame.to_string(index=False)}\n\n{len(found)} folders, {total:.1f} MB"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m pruning_lab.cache", description=__doc__)
    for kind in MARKS:
        parser.add_argument(f"--{kind}", type=Path, default=Path(kind), help=f"default: {kind}")
    clear = "delete these: names of the list, or baselines, checkpoints"
    parser.add_argument("--clear", nargs="+", default=[], metavar="NAME", help=clear)
    days = "clear only what nothing was written to for so many days"
    parser.add_argument("--days", type=float, default=0.0, help=days)
    options: Any = parser.parse_args(arguments)
    found = list(kept({kind: getattr(options, kind) for kind in MARKS}))
    if not options.clear:
        print(table(found))
        return 0
    try:
        for each in chosen(found, options.clear, options.days):
            try:
                size = each.size
                each.clear()
                print(f"{each.name}: {size / 1e6:.1f} MB cleared")
            except Timeout:
                print(f"{each.name}: left alone, a process is using it")
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _last(target: str) -> str:
    return target.rpartition(".")[2]


if __name__ == "__main__":
    sys.exit(main())
