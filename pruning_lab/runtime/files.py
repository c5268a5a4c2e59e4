"""Write files completely or not at all, even if the power fails."""

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
    """Yield a temporary path beside ``path``; the file written there replaces ``path`` at the end.

    It is on the disk when the block ends. A temporary file left by a killed process is overwritten.
    Raises UserError if the file cannot be written.
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
    """Raise UserError unless files can be written to ``folder``, which need not exist yet."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryDirectory(dir=there):  # permissions do not show every obstacle
            pass
    except OSError as error:
        raise UserError(
            f"{name}={folder} cannot be written: {error.strerror} ({there}). Give another."
        ) from error


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as JSON; numpy numbers and arrays become plain numbers and lists."""
    with replacing(path) as temporary:
        temporary.write_text(to_json(content) + "\n")


def to_json(content: Any) -> str:
    """Return ``content`` as one line of JSON."""
    return json.dumps(content, default=lambda value: value.tolist())


def to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's list of files, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _reason(error: Exception) -> str | None:
    """Return why writing failed, None for an unrelated error; safetensors has its own class."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error) if type(error).__name__ == "SafetensorError" else None
