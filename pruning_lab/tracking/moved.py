"""The files of runs beside an SQLite store that was moved or copied.

MLflow keeps absolute addresses of them in the store.
"""

import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

log = logging.getLogger(__name__)

FOLDER = "mlruns"
"""Beside the database lies a folder of this name, with one folder for each experiment."""


def files_beside(database: Path, experiment: str) -> str:
    """The address of the files of an experiment, given the name of their folder."""
    return (database.parent.resolve() / FOLDER / experiment).as_uri()


def local_path(address: str) -> Path | None:
    """The folder of a ``file:`` address on this machine; None for other addresses."""
    parsed = urlparse(address)
    if parsed.scheme != "file" or parsed.netloc:
        return None
    return Path(url2pathname(parsed.path))


def follow_move(database: Path) -> None:
    """Correct the addresses of files that lie beside ``database`` and are recorded elsewhere.

    They are left alone where the recorded folder is there and the one beside the database is not.
    """
    with closing(sqlite3.connect(database, timeout=60)) as store, store:
        rows = store.execute("select experiment_id, artifact_location from experiments").fetchall()
        for experiment, recorded in rows:
            there = local_path(recorded or "")
            if there is None or there.parent.name != FOLDER:
                continue
            here = files_beside(database, there.name)
            if recorded != here and _moved(there, Path(database.parent, FOLDER, there.name)):
                _correct(store, experiment, recorded, here)
                log.info(
                    "The store was moved or copied: files are now read and written in %s", here
                )


def _moved(there: Path, here: Path) -> bool:
    if here.exists():
        return not (there.exists() and there.samefile(here))
    return not there.exists()


def _correct(store: sqlite3.Connection, experiment: int, recorded: str, here: str) -> None:
    store.execute(
        "update experiments set artifact_location = ? where experiment_id = ?", (here, experiment)
    )
    store.execute(
        "update runs set artifact_uri = ? || substr(artifact_uri, ?) "
        "where experiment_id = ? and substr(artifact_uri, 1, ?) = ?",
        (here, len(recorded) + 1, experiment, len(recorded) + 1, f"{recorded}/"),
    )
