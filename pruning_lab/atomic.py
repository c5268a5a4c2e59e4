"""Files that are written whole or not at all, also when the power fails meanwhile."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pruning_lab.errors import UserError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path`` that takes its place, on the disk, when the body ends.

    What a killed process left of one is overwritten by the next. Raises UserError where the file
    cannot be written.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        to_disk(temporary)
        temporary.replace(path)
        to_disk(path.parent)
    except Exception as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if (reason := _reason(error)) is None:
            raise
        raise UserError(
            f"{path} cannot be written: {reason}. Make room for it, or give another folder, and "
            "run the same command again: what was finished before is kept."
        ) from error


def check_folder(name: str, folder: Path) -> None:
    """UserError unless files can be written in a folder, or in one that is made there."""
    there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    try:
        with tempfile.TemporaryDirectory(dir=there):  # permissions do not tell of all obstacles
            pass
    except OSError as error:
        raise UserError(
            f"{name}={folder} cannot be written: {error.strerror} ({there}). Give another."
        ) from error


def write_json(path: Path, content: Any) -> None:
    """``content`` as JSON; numpy's numbers and arrays as plain ones."""
    with replacing(path) as temporary:
        temporary.write_text(to_json(content) + "\n")


def to_json(content: Any) -> str:
    """One line of JSON."""
    return json.dumps(content, default=lambda value: value.tolist())


def to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's list of files, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _reason(error: Exception) -> str | None:
    """Why the disk refused, None for another error; safetensors has errors of its own."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error) if type(error).__name__ == "SafetensorError" else None
