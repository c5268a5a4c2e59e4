"""Connect to the tracking store, a database file or a server.

MLflow records absolute addresses of files: those of a database that was moved are corrected.
"""

import logging
import os
import re
import shlex
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

from filelock import FileLock
from mlflow.tracking import MlflowClient
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from pruning_lab.config.sections import without_password
from pruning_lab.errors import UserError
from pruning_lab.runtime.files import replacing

log = logging.getLogger(__name__)
logging.getLogger("mlflow").setLevel(logging.WARNING)  # importing mlflow changes it
logging.getLogger("alembic").setLevel(logging.WARNING)

SQLITE = "sqlite:///"

FOLDER = "mlruns"
"""Folder beside the database that holds one folder per experiment."""

IMPATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""MLflow's settings while connecting: a server that does not answer is reported soon."""

LOCAL_SERVER = "http://127.0.0.1:5000"
"""Address of ``mlflow ui``."""

CHARTS = "runs?compareRunsMode=CHART&workflowType=machine_learning"
"""Suffix of an experiment's address that opens the charts of its runs."""


def connect(uri: str, to_write: bool = True) -> MlflowClient:
    """Return a client of the tracking store at ``uri``.

    A database that does not exist is created under a lock, completely or not at all: several
    processes at once would break its migration, and so would one that is killed meanwhile.
    Raises UserError if the store cannot be reached, or with ``to_write`` if its database is
    read-only.
    """
    uri = address(uri)
    with reaching(uri), _database_lock(uri, to_write), _little_patience():
        client = MlflowClient(tracking_uri=address(uri, Path.cwd()))  # MLflow caches by address
        client.search_experiments(max_results=1)
    return client


@contextmanager
def reaching(uri: str) -> Iterator[None]:
    """Convert every error of the body to a UserError that says that the store cannot be reached."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # whatever the store's driver raises
        reason = first_line(error).rstrip(".")
        message = without_password(f"tracking.uri={uri} cannot be reached: {reason}.")
        raise UserError(
            f"{message} Start the server (mlflow server) and run the same command again (what was "
            "finished is kept), or give another address, sqlite:///mlflow.db for example."
        ) from error


def first_line(error: Exception) -> str:
    """Return an error's first line without passwords; databases add traces below it."""
    return without_password((str(error).strip().splitlines() or [type(error).__name__])[0])


def connect_to_read(uri: str) -> MlflowClient:
    """Return a client of a store; UserError if it does not exist yet."""
    file = sqlite_file(uri)
    if file is not None and not file.is_file():
        raise UserError(f"{file} is not there: no runs were recorded, or in another place.")
    return connect(uri, to_write=False)


def number_of(uri: str, experiment: str) -> str:
    """Return the number of an experiment; UserError if it or the store does not exist."""
    with reaching(uri):
        entry = connect_to_read(uri).get_experiment_by_name(experiment)
    if entry is None:
        raise UserError(f"tracking.uri={without_password(uri)} has no experiment '{experiment}'.")
    return str(entry.experiment_id)


def where_to_look(uri: str, experiment_id: str) -> str:
    """Return the command that starts MLflow's UI, and the page with an experiment's curves.

    For a server the page alone. MLflow's start page shows no runs.
    """
    page = f"#/experiments/{experiment_id}/{CHARTS}"
    if uri.startswith("http"):
        return without_password(f"{uri.rstrip('/')}/{page}")
    to_start = ["-m", "mlflow", "ui", "--backend-store-uri", address(uri)]
    command = shlex.join([sys.executable, *to_start])
    return without_password(f"{command}\n{'':13} then open {LOCAL_SERVER}/{page}")


def sqlite_file(uri: str) -> Path | None:
    """Return the file of ``sqlite:///relative`` or ``sqlite:////absolute``; None otherwise."""
    uri = address(uri)
    return Path(make_url(uri).database or "") if uri.startswith(SQLITE) else None


def address(uri: str, folder: Path | None = None) -> str:
    """Return the address in a form that this program, SQLAlchemy and MLflow read alike.

    Servers' addresses stay. A database file is decoded as SQLAlchemy does (``%20`` is a space),
    ``~`` is the home folder, and a relative path is put into ``folder``, if that is given.
    Raises UserError if the address names no file, or has more than a file and a ``timeout``.
    """
    if not re.match(r"\s*sqlite\b", uri, re.IGNORECASE):
        return uri
    try:
        url = make_url(uri)
        file = os.path.expanduser(url.database or "")  # noqa: PTH111  (Path drops a slash)
    except ArgumentError:
        url, file = None, ""
    if url is None or file in ("", ":memory:"):
        raise UserError(
            f"tracking.uri={uri} names no file: runs would be lost at the end. Give "
            "sqlite:///mlflow.db for example."
        )
    file = str(folder / file) if folder else file
    query = uri.partition("?")[2]
    normal = f"{SQLITE}{file}" + f"?{query}" * bool(query)
    local = url.drivername in ("sqlite", "sqlite+pysqlite") and not (url.host or url.username)
    plain = not file.startswith(("~", "file:")) and make_url(normal).database == file
    if not (local and plain and re.fullmatch(r"(timeout=\d+)?", query)):
        raise UserError(
            f"tracking.uri={without_password(uri)} is not possible: give {SQLITE}FILE, where "
            "FILE contains no ? and no code like %41; only ?timeout=SECONDS may follow it."
        )
    return normal


@contextmanager
def _database_lock(uri: str, to_write: bool) -> Iterator[None]:
    """Hold the lock beside an SQLite file and create the file if needed; no-op for other stores.

    With ``to_write``, raise the database's error if it is not writable.
    """
    file = sqlite_file(uri)
    if file is None:
        yield
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock"):
        if not file.exists() or (file.is_file() and not file.stat().st_size):
            _make_database(file)
        with closing(sqlite3.connect(file, timeout=60)) as database:
            database.execute("begin immediate")  # MLflow would retry for minutes
            if to_write:
                database.execute("create table written (x)")  # never committed
        follow_move(file)
        yield


def _make_database(file: Path) -> None:
    """Create MLflow's tables under a temporary name, so that no incomplete file can remain.

    In WAL mode, which is stored in the file, readers do not wait for writers.
    """
    with replacing(file) as temporary:
        temporary.unlink(missing_ok=True)
        store = MlflowClient(tracking_uri=f"{SQLITE}{temporary.absolute()}")
        store.search_experiments(max_results=1)
        with closing(sqlite3.connect(temporary, timeout=60)) as database, database:
            database.execute("pragma journal_mode = wal")
            database.execute(  # the files of MLflow's own experiment, Default: like all others
                "update experiments set artifact_location = ? where experiment_id = 0",
                (files_beside(file, "0"),),
            )


@contextmanager
def _little_patience() -> Iterator[None]:
    """Let requests to a server fail soon inside the block."""
    before = {key: os.environ[key] for key in IMPATIENT}  # environment.py has set them
    os.environ.update(IMPATIENT)
    try:
        yield
    finally:
        os.environ.update(before)


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
