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
    """The folder of an address on this machine; None for other addresses."""
    if address.startswith("/"):  # as MLflow writes it of its own experiment, Default
        return Path(address)
    parsed = urlparse(address)
    if parsed.scheme != "file" or parsed.netloc:
        return None
    return Path(url2pathname(parsed.path))


def place_default(database: Path) -> None:
    """Give MLflow's own experiment, Default, its files beside ``database``, as all others have."""
    with closing(sqlite3.connect(database, timeout=60)) as store, store:
        store.execute(
            "update experiments set artifact_location = ? where experiment_id = 0",
            (files_beside(database, "0"),),
        )


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
    """Correct the address of an experiment, and of its runs, but for those that are still there."""
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
