"""Find the files of runs after their SQLite store was moved or copied.

MLflow records absolute addresses of them in the store.
"""

import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

log = logging.getLogger(__name__)

FOLDER = "mlruns"
"""Folder beside the database that holds one folder per experiment."""


def files_beside(database: Path, experiment: str) -> str:
    """Return the address of an experiment's files, given the name of their folder."""
    return (database.parent.resolve() / FOLDER / experiment).as_uri()


def local_path(address: str) -> Path | None:
    """Return the folder of an address on this machine; None for other addresses."""
    if address.startswith("/"):  # MLflow's form for its own experiment, Default
        return Path(address)
    parsed = urlparse(address)
    if parsed.scheme != "file" or parsed.netloc:
        return None
    return Path(url2pathname(parsed.path))


def follow_move(database: Path) -> None:
    """Correct the addresses of files that lie beside ``database`` but are recorded elsewhere.

    An address stays if its folder exists and the one beside the database does not.
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
    """Correct the address of an experiment and of its runs, except of runs that did not move."""
    store.execute(
        "update experiments set artifact_location = ? where experiment_id = ?", (here, experiment)
    )
    runs = store.execute(
        "select run_uuid, artifact_uri from runs where experiment_id = ?", (experiment,)
    ).fetchall()
    for run, address in runs:
        if not address.startswith(f"{recorded}/"):
            continue
        corrected = here + address.removeprefix(recorded)
        new, old = local_path(corrected), local_path(address)
        if (new and new.exists()) or not (old and old.exists()):
            store.execute("update runs set artifact_uri = ? where run_uuid = ?", (corrected, run))
