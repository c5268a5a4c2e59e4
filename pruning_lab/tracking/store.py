"""Where runs are recorded: a database file or a server."""

import logging
import os
import re
import shlex
import sqlite3
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

from filelock import FileLock
from mlflow.tracking import MlflowClient
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from pruning_lab.atomic import replacing
from pruning_lab.errors import UserError
from pruning_lab.tracking.moved import follow_move, place_default

logging.getLogger("mlflow").setLevel(logging.WARNING)  # its import sets another level
logging.getLogger("alembic").setLevel(logging.WARNING)

SQLITE = "sqlite:///"


LOCAL_SERVER = "http://127.0.0.1:5000"
"""Where ``mlflow ui`` answers."""

CHARTS = "runs?compareRunsMode=CHART&workflowType=machine_learning"
"""The charts of an experiment's runs, after its address."""


def connect(uri: str) -> MlflowClient:
    """A client of the tracking store at ``uri``, made ready; UserError when it cannot be reached.

    A database that does not exist yet is made under a lock, and whole or not at all: several
    processes that make it at once break its migration, and so does one that is killed meanwhile.
    """
    return _connected(uri, to_write=True)


def _connected(uri: str, to_write: bool) -> MlflowClient:
    uri = address(uri)
    patience = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
    with reaching(uri), _database_lock(uri, to_write), _environment(patience):
        client = MlflowClient(tracking_uri=address(uri, Path.cwd()))  # it keeps stores by address
        client.search_experiments(max_results=1)
    return client


@contextmanager
def reaching(uri: str) -> Iterator[None]:
    """UserError for whatever goes wrong between here and the store."""
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
    """What an error says, without passwords and the traces that databases add."""
    return without_password((str(error).strip().splitlines() or [type(error).__name__])[0])


def without_password(text: str) -> str:
    """The text with the password of every address in it hidden."""
    text = re.sub(r"://([^/@:\s]*):\S+@", r"://\1:***@", text)
    return re.sub(r"([?&]password=)[^&\s]+", r"\1***", text)


def connect_to_read(uri: str) -> MlflowClient:
    """A client of a store that must be there already."""
    file = sqlite_file(uri)
    if file is not None and not file.is_file():
        raise UserError(f"{file} is not there: no runs were recorded, or somewhere else.")
    return _connected(uri, to_write=False)


def number_of(uri: str, experiment: str) -> str:
    """The number of an experiment; UserError where there is none, or no store."""
    with reaching(uri):
        found = connect_to_read(uri).get_experiment_by_name(experiment)
    if found is None:
        raise UserError(f"tracking.uri={without_password(uri)} has no experiment '{experiment}'.")
    return str(found.experiment_id)


def where_to_look(uri: str, experiment_id: str) -> str:
    """How to see the curves of an experiment in MLflow: a command, and the page to open then.

    MLflow's own start page is about something else, and shows no runs.
    """
    page = f"#/experiments/{experiment_id}/{CHARTS}"
    if uri.startswith("http"):
        return without_password(f"{uri.rstrip('/')}/{page}")
    to_start = ["-m", "mlflow", "ui", "--backend-store-uri", address(uri)]
    command = shlex.join([sys.executable, *to_start])
    return without_password(f"{command}\n{'':13} then open {LOCAL_SERVER}/{page}")


def sqlite_file(uri: str) -> Path | None:
    """The file of ``sqlite:///relative`` or ``sqlite:////absolute``; None for other stores."""
    uri = address(uri)
    return Path(make_url(uri).database or "") if uri.startswith(SQLITE) else None


def address(uri: str, folder: Path | None = None) -> str:
    """The address as everybody reads it alike: this program, SQLAlchemy, and MLflow.

    A database file is as SQLAlchemy reads it (``%20`` is a space), ``~`` is the home folder, and a
    relative one is put into ``folder``, where that is given.
    Raises UserError where the address names no file, or has anything but a file and a ``timeout``.
    """
    if not re.match(r"\s*sqlite\b", uri, re.IGNORECASE):
        return uri  # a server's
    try:
        url = make_url(uri)
        file = os.path.expanduser(url.database or "")  # noqa: PTH111  (Path drops a slash)
    except ArgumentError:
        url, file = None, ""
    if url is None or file in ("", ":memory:"):
        raise UserError(
            f"tracking.uri={uri} names no file: runs would be gone at the end. Give "
            "sqlite:///mlflow.db for example."
        )
    file = str(folder / file) if folder else file
    asked = uri.partition("?")[2]
    found = f"{SQLITE}{file}" + f"?{asked}" * bool(asked)
    local = url.drivername in ("sqlite", "sqlite+pysqlite") and not (url.host or url.username)
    plain = not file.startswith(("~", "file:")) and make_url(found).database == file
    if not (local and plain and re.fullmatch(r"(timeout=\d+)?", asked)):
        raise UserError(
            f"tracking.uri={without_password(uri)} is not possible: give {SQLITE}FILE with a name "
            "that holds no ? and no code like %41, and after it nothing but ?timeout=SECONDS."
        )
    return found


@contextmanager
def _database_lock(uri: str, to_write: bool) -> Iterator[None]:
    """Hold the lock beside an SQLite file, which is there then and, if that is asked, writable.

    Nothing for other stores.
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
            database.execute("begin immediate")  # MLflow tries for minutes what fails here at once
            if to_write:
                database.execute("create table written (x)")  # never committed
        follow_move(file)
        yield


def _make_database(file: Path) -> None:
    """MLflow's tables under another name first: whoever is killed meanwhile leaves no half of them.

    Readers do not wait for writers in WAL mode, which belongs to the file.
    """
    with replacing(file) as temporary:
        temporary.unlink(missing_ok=True)
        store = MlflowClient(tracking_uri=f"{SQLITE}{temporary.absolute()}")
        store.search_experiments(max_results=1)
        with closing(sqlite3.connect(temporary, timeout=60)) as database:
            database.execute("pragma journal_mode = wal")
        place_default(temporary)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value
