"""The only room that knows MLflow: every key is written and read here."""

import json
import logging
import os
import re
import shlex
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pandas as pd
from filelock import FileLock
from matplotlib.figure import Figure
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pruning_lab.attributions.scores import (
    Estimates,
    Scores,
    load_estimates,
    save_estimates,
    scores_of,
)
from pruning_lab.errors import UserError

os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
logging.getLogger("mlflow").setLevel(logging.WARNING)
logging.getLogger("alembic").setLevel(logging.WARNING)

STEPS = "steps.csv"
SCORES = "scores/step_{step:03d}.npz"
BASELINE_SCORES = "scores/baseline.npz"
GROUPS = ("metric", "model", "dataset", "schedule", "finetune", "baseline", "setting",
          "metric_settings")  # fmt: skip
"""The tags by which runs are grouped."""
SECTIONS = ("accuracy", "loss", "removed", "seconds")
"""The UI shows the charts of metrics in sections by what stands before the slash, ``cost`` too."""
COLOR = "mlflow.runColor"
"""The tag that says how the UI draws a run."""


def connect(uri: str) -> MlflowClient:
    """A client of the tracking store at ``uri``, made ready; UserError when it cannot be reached.

    A database that does not exist yet is made under a lock: several processes that make it at
    once break its migration.
    """
    patience = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
    try:
        with _database_lock(uri), _environment(patience):
            client = MlflowClient(tracking_uri=uri)
            client.search_experiments(max_results=1)
    except Exception as error:  # whatever the store's driver raises
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        message = without_password(f"tracking.uri={uri} cannot be reached: {reason}.")
        raise UserError(
            f"{message} Start the server (mlflow server) or give another address, "
            "sqlite:///mlflow.db for example."
        ) from error
    return client


def without_password(text: str) -> str:
    """The text with the password of every address in it hidden."""
    return re.sub(r"://([^/@:\s]*):[^/@\s]+@", r"://\1:***@", text)


def _connect_to_read(uri: str) -> MlflowClient:
    file = _sqlite_file(uri)
    if file is not None and not file.is_file():
        raise UserError(f"{file} is not there: no runs were recorded, or somewhere else.")
    return connect(uri)


def ui_command(uri: str) -> str:
    """The command that opens the MLflow UI on the store at ``uri``, or the server's address."""
    if uri.startswith("http"):
        return uri
    return f"{Path(sys.executable).parent / 'mlflow'} ui --backend-store-uri {shlex.quote(uri)}"


class Run:
    """One MLflow run, from start to end."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self.client = client
        self.run_id = run_id

    def metrics(self, permille: int, values: Mapping[str, float]) -> None:
        """Log the numbers of one step.

        MLflow's step is the permille of FLOPs removed: the default charts are then curves of
        accuracy over FLOPs. ``test_accuracy_after`` is ``accuracy/test_accuracy_after`` there.
        """
        now = int(1000 * time.time())
        self.client.log_batch(
            self.run_id,
            metrics=[Metric(_in_section(k), float(v), now, permille) for k, v in values.items()],
        )

    def figure(self, figure: Figure, name: str) -> None:
        """Log a figure as PNG."""
        self.client.log_figure(self.run_id, figure, f"figures/{name}.png")

    def table(self, frame: pd.DataFrame, name: str = STEPS) -> None:
        """Log a frame as CSV."""
        self.client.log_text(self.run_id, frame.to_csv(index=False), name)

    def text(self, text: str, name: str) -> None:
        """Log a text file."""
        self.client.log_text(self.run_id, text, name)

    def folder(self, folder: Path, name: str) -> None:
        """Log the files of a folder."""
        self.client.log_artifacts(self.run_id, str(folder), name)

    def scores(self, estimates: Estimates, step: int | None = None) -> None:
        """Log scores and errors as npz, keys ``criterion|layer``; the baseline's without step."""
        name = BASELINE_SCORES if step is None else SCORES.format(step=step)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / Path(name).name
            save_estimates(estimates, path)
            self.client.log_artifact(self.run_id, str(path), str(Path(name).parent))


@contextmanager
def run(
    client: MlflowClient,
    experiment: str,
    name: str,
    tags: Mapping[str, Any],
    params: Mapping[str, Any],
    color: str = "",
) -> Iterator[Run]:
    """A run that ends as FINISHED, or as FAILED (KILLED for Ctrl-C) when the body raises."""
    number = _experiment(client, experiment)
    text = {key: str(value) for key, value in tags.items()} | ({COLOR: color} if color else {})
    created = client.create_run(number, run_name=name, tags=text)
    run_id = created.info.run_id
    status = "FAILED"
    try:
        client.log_batch(run_id, params=[Param(key, str(value)) for key, value in params.items()])
        yield Run(client, run_id)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    except Exception as error:
        client.set_tag(run_id, "error", f"{type(error).__name__}: {error}"[:5000])
        raise
    finally:
        client.set_terminated(run_id, status)


def read_runs(uri: str, experiment: str) -> pd.DataFrame:
    """All finished runs of an experiment as one tidy frame: a row for each run and step.

    Columns: ``run_id metric model dataset schedule finetune baseline setting metric_settings
    seed`` and those of the run's step table (one row a step). Of runs that repeat another one, the
    newest is read. Raises UserError when there is no such experiment.
    """
    client = _connect_to_read(uri)
    seen = set()
    frames = []
    for found in _finished_runs(client, experiment):
        tags = {key: found.data.tags.get(key) for key in GROUPS}
        which = tuple(found.data.params.items())
        if which in seen:
            continue
        seen.add(which)
        with _downloaded(client, found.info.run_id, STEPS) as path:
            frame = pd.read_csv(path)
        head = {"run_id": found.info.run_id, **tags, "seed": int(found.data.tags["seed"])}
        frames.append(frame.assign(**head)[[*head, *frame.columns]])
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def read_scores(uri: str, run_id: str, step: int | None = None) -> Scores:
    """The raw scores of a run: all criteria on the baseline, or those that led to ``step``."""
    return scores_of(read_estimates(uri, run_id, step))


def read_estimates(uri: str, run_id: str, step: int | None = None) -> Estimates:
    """The same with their errors, where those are known."""
    name = BASELINE_SCORES if step is None else SCORES.format(step=step)
    with _downloaded(_connect_to_read(uri), run_id, name) as path:
        return load_estimates(path)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested configuration as dotted keys, ``schedule.target`` for example."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = json.dumps(value) if isinstance(value, list) else value
    return flat


def _in_section(key: str) -> str:
    """The key of a metric with its section in front."""
    if "/" in key:
        return key
    return f"{next((section for section in SECTIONS if section in key), 'cost')}/{key}"


def _finished_runs(client: MlflowClient, experiment: str) -> list[Any]:
    found = client.get_experiment_by_name(experiment)
    if found is None:
        names = ", ".join(e.name for e in client.search_experiments()) or "none"
        raise UserError(f"There is no experiment '{experiment}' in this store; there are: {names}.")
    runs: list[Any] = []
    token = None
    while True:
        page = client.search_runs(
            [found.experiment_id], "attributes.status = 'FINISHED'", page_token=token
        )
        runs += page
        token = page.token
        if not token:
            return runs


@contextmanager
def _downloaded(client: MlflowClient, run_id: str, name: str) -> Iterator[Path]:
    """A run's file, for a while: MLflow's own temporary folders are never removed."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(client.download_artifacts(run_id, name, folder))


def _experiment(client: MlflowClient, name: str) -> str:
    """The number of the experiment, made if it is new; beside an SQLite file lie its artifacts."""
    found = client.get_experiment_by_name(name) if name else None
    if found is None:
        database = _sqlite_file(client.tracking_uri)
        folder = re.sub(r"[^\w.-]|^[.]+", "_", name)
        place = (database.parent.resolve() / "mlruns" / folder).as_uri() if database else None
        try:
            return client.create_experiment(name, artifact_location=place)
        except MlflowException as error:
            found = client.get_experiment_by_name(name) if name else None
            if found is None:  # no other process was faster: the name itself is refused
                raise UserError(f"tracking.experiment={name} is not possible: {error}") from error
    if found.lifecycle_stage == "deleted":
        raise UserError(
            f"tracking.experiment={name} was deleted in this store; give another name, or restore "
            f"it: mlflow experiments restore -x {found.experiment_id}"
        )
    return found.experiment_id


def _sqlite_file(uri: str) -> Path | None:
    """The file of ``sqlite:///relative`` or ``sqlite:////absolute``; None for other stores."""
    path = urlparse(uri).path[1:]
    return Path(path) if uri.startswith("sqlite:///") and path else None


@contextmanager
def _database_lock(uri: str) -> Iterator[None]:
    """Hold the lock beside an SQLite file that can be written; nothing for other stores."""
    file = _sqlite_file(uri)
    if file is None:
        yield
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock"):
        with closing(sqlite3.connect(file, timeout=60)) as database:
            database.execute("begin immediate")  # MLflow tries for minutes what fails here at once
        yield


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
