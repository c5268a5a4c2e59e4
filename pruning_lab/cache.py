"""``python -m pruning_lab.cache``: list and delete cached baselines and unfinished runs."""

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

import pandas as pd
from filelock import FileLock, Timeout

from pruning_lab.errors import UserError

NAME = re.compile(r"[0-9a-f]{12}(-[0-9]+)?")
"""Name of a cached folder: a hash, and a number if that hash was already in use."""

MARKS = {"baselines": "determinants.json", "checkpoints": "run.json"}
"""kind -> file that marks its folders; only marked folders named by a hash are deleted."""

DAY = 86_400


@dataclass(frozen=True)
class CacheEntry:
    """A cached folder: a trained baseline with its scores, or an unfinished run."""

    kind: str
    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def size(self) -> int:
        """Total size of its files in bytes."""
        return sum(stat.st_size for stat in self._files())

    @property
    def age(self) -> float:
        """Days since its last modification."""
        written = (stat.st_mtime for stat in self._files())
        return (time.time() - max(written, default=self.path.stat().st_mtime)) / DAY

    def _files(self) -> Iterator[os.stat_result]:
        for path in self.path.rglob("*"):
            with suppress(FileNotFoundError):  # a running job renames its files
                if path.is_file():
                    yield path.stat()

    @property
    def about(self) -> str:
        """Names of model, data set and criterion, and the seed, as far as they can be read."""
        try:
            record = json.loads((self.path / MARKS[self.kind]).read_text())
            start = record.get("start", record)
            names = record.get("of") or {
                key: start[key]["_target_"].rpartition(".")[2] for key in ("model", "dataset")
            }
            parts = [names[key] for key in ("model", "dataset", "metric") if key in names]
            return " ".join([*parts, f"seed {start['seeds']['init']}"])
        except (OSError, ValueError, KeyError, TypeError):
            return "cannot be read"

    def clear(self) -> None:
        """Delete the folder; raise Timeout if a process is using it."""
        beside = self.path.with_suffix(".lock")
        with ExitStack() as held:
            for path in filter(Path.exists, [*self.path.glob(".*.lock"), beside]):
                held.enter_context(FileLock(path).acquire(blocking=False))
            shutil.rmtree(self.path)
        beside.unlink(missing_ok=True)


def entries_in(folders: dict[str, Path]) -> Iterator[CacheEntry]:
    """Yield the cached entries of ``folders`` (kind -> folder), kind by kind."""
    for kind, folder in folders.items():
        for mark in sorted(folder.glob(f"*/{MARKS[kind]}")):
            if NAME.fullmatch(mark.parent.name):
                yield CacheEntry(kind, mark.parent)


def chosen(entries: Sequence[CacheEntry], names: Sequence[str], days: float) -> list[CacheEntry]:
    """Select by name or kind the entries unmodified for ``days``; UserError for unknown names."""
    known = {*MARKS, *(entry.name for entry in entries)}
    if unknown := [name for name in names if name not in known]:
        raise UserError(
            f"There is no '{unknown[0]}' here; choose baselines, checkpoints, or names of the list."
        )
    return [entry for entry in entries if {entry.kind, entry.name} & {*names} and entry.age >= days]


def table(entries: Sequence[CacheEntry]) -> str:
    """Format the entries: name, kind, content, size and age, and the total size."""
    if not entries:
        return "Nothing is kept here."
    frame = pd.DataFrame(
        [(e.name, e.kind, e.about, f"{e.size / 1e6:.1f}", f"{e.age:.1f}") for e in entries],
        columns=["name", "kind", "of", "MB", "days"],
    )
    total = sum(entry.size for entry in entries) / 1e6
    return f"{frame.to_string(index=False)}\n\n{len(entries)} folders, {total:.1f} MB"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser("python -m pruning_lab.cache", description=__doc__)
    for kind in MARKS:
        parser.add_argument(f"--{kind}", type=Path, default=Path(kind), help=f"default: {kind}")
    clear = "entries to delete: names from the list, or the kinds baselines, checkpoints"
    parser.add_argument("--clear", nargs="+", default=[], metavar="NAME", help=clear)
    days = "clear only entries not modified for at least this many days"
    parser.add_argument("--days", type=float, default=0.0, help=days)
    options = parser.parse_args(arguments)
    entries = list(entries_in({kind: getattr(options, kind) for kind in MARKS}))
    if not options.clear:
        print(table(entries))
        return 0
    try:
        selected = chosen(entries, options.clear, options.days)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    for entry in selected:
        size = entry.size
        try:
            entry.clear()
            print(f"{entry.name}: {size / 1e6:.1f} MB cleared")
        except Timeout:
            print(f"{entry.name}: left alone, a process is using it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
