"""Write to MLflow while an experiment runs."""

import hashlib
import io
import json
import logging
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.text import Text
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pruning_lab.attributions.estimation.scores import Estimates, save_estimates
from pruning_lab.config.sections import without_password
from pruning_lab.errors import UserError, printable
from pruning_lab.records.step import MAIN
from pruning_lab.runtime.files import to_disk
from pruning_lab.tracking.keys import (
    CHECKPOINT,
    COLOR,
    COMPARISON,
    ERROR,
    STEPS,
    permitted,
    scores_file,
)
from pruning_lab.tracking.store import (
    connect,
    files_beside,
    first_line,
    local_path,
    reaching,
    sqlite_file,
)

log = logging.getLogger(__name__)

LONGEST_FOLDER = 200
"""Longest name of a folder in bytes, somewhat below the limit of file systems."""

PAUSE = 60.0
"""Seconds before a store that did not answer is tried again."""

REFUSALS = (400, 413, 422)
"""HTTP status codes of requests that are at fault: the server would refuse them again."""

PATIENCE = (0, 1, 5, 15)
"""Seconds to wait before each of the last attempts, at the end of a run."""


class Run:
    """One MLflow run, from start to end.

    Entries that the store does not accept at once wait in memory, in order, and are sent with a
    later entry or at the end: a server that is down for a while stops no experiment. An entry that
    the store refuses for good is skipped with a warning, since it would block all later ones.
    """

    def __init__(self, client: MlflowClient, run_id: str, experiment_id: str = "0") -> None:
        self.client = client
        self.run_id = run_id
        self.experiment_id = experiment_id
        self._waiting: list[Callable[[], object]] = []
        self._failed = float("-inf")

    def metrics(self, permille: int, values: Mapping[str, float], at: float | None = None) -> None:
        """Log the numbers of one step, by their keys (``chart_key``).

        MLflow's step is the permille of FLOPs removed, so that the default charts are curves of
        measures over FLOPs. ``at`` is the time of the measurement (seconds since 1970); a point
        logged twice with the same time is one point.
        """
        when = int(1000 * (time.time() if at is None else at))
        metrics = [
            Metric(permitted(key), float(value), when, permille) for key, value in values.items()
        ]
        self._send(lambda: self._log(metrics))

    def params(self, params: Mapping[str, Any]) -> None:
        """Log the configuration; a continued run keeps the values that it began with."""

        def send() -> None:
            known = self.client.get_run(self.run_id).data.params
            named = {permitted(key): printable(str(value)) for key, value in params.items()}
            self._log([Param(key, value) for key, value in named.items() if key not in known])

        self._send(send)

    def figure(self, figure: Figure, name: str) -> None:
        """Log a figure as PNG."""
        content = io.BytesIO()
        with matplotlib.rc_context({"text.parse_math": False}):  # names may contain a $
            for text in figure.findobj(Text):
                text.set_parse_math(False)
            figure.savefig(content, format="png")
        self.file(content.getvalue(), f"figures/{name}.png")

    def table(self, frame: pd.DataFrame, name: str = STEPS) -> None:
        """Log a frame as CSV."""
        self.text(frame.to_csv(index=False), name)

    def text(self, text: str, name: str) -> None:
        """Log a text file."""
        self.file(text.encode(errors="backslashreplace"), name)

    def folder(self, folder: Path, name: str) -> None:
        """Log the files of a folder."""
        self._send(lambda: self.client.log_artifacts(self.run_id, str(folder), name))

    def scores(self, estimates: Estimates, step: int | None = None, track: str = MAIN) -> None:
        """Log scores and errors as npz, keys ``criterion|layer``; without step the baseline's."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "scores.npz"
            save_estimates(estimates, path)
            self.file(path.read_bytes(), scores_file(step, track))

    def deliver(self) -> None:
        """Send all waiting entries; skip those refused for good, raise the store's other errors."""
        while self._waiting:
            try:
                self._waiting[0]()
            except MlflowException as error:
                if error.get_http_status_code() not in REFUSALS:
                    raise
                self._leave_out("a file", error)
            del self._waiting[0]

    def _log(self, entries: Sequence[Metric | Param]) -> None:
        """Log metrics and parameters; if some are refused for good, log them one by one."""
        metrics = [entry for entry in entries if isinstance(entry, Metric)]
        params = [entry for entry in entries if isinstance(entry, Param)]
        try:
            self.client.log_batch(self.run_id, metrics, params)
        except MlflowException as error:
            if error.get_http_status_code() not in REFUSALS:
                raise
            if len(entries) == 1:
                self._leave_out(repr(entries[0].key), error)
            else:
                for entry in entries:
                    self._log([entry])

    def _leave_out(self, what: str, error: Exception) -> None:
        log.warning(
            "MLflow does not take %s, and it is left out there (%s). The run's steps.csv and "
            "config.yaml have all numbers and settings.", what, first_line(error),
        )  # fmt: skip

    def file(self, content: bytes, name: str) -> None:
        """Log a file with this content."""

        def send() -> None:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / Path(name).name
                path.write_bytes(content)
                parent = str(Path(name).parent)
                self.client.log_artifact(self.run_id, str(path), None if parent == "." else parent)

        self._send(send)

    def _send(self, send: Callable[[], object]) -> None:
        self._waiting.append(send)
        if time.monotonic() - self._failed < PAUSE:
            return
        try:
            self.deliver()
        except Exception as error:  # whatever the store's driver raises
            self._failed = time.monotonic()
            log.warning(
                "The tracking store does not take what was measured (%s). The run goes on, and "
                "sends it later.", first_line(error),
            )  # fmt: skip


@contextmanager
def run(
    client: MlflowClient,
    experiment: str,
    name: str,
    tags: Mapping[str, Any],
    params: Mapping[str, Any],
    color: str = "",
) -> Iterator[Run]:
    """Open a run; it ends as FINISHED, or if the body raises as FAILED (KILLED: Ctrl-C, exits).

    If a run has the same tag ``checkpoint``, it is continued.
    """
    text = {key: printable(str(value)) for key, value in tags.items()}
    text |= {COLOR: color} if color else {}
    with reaching(client.tracking_uri):
        number = _experiment(client, experiment)
        run_id = _begun(client, number, tags)
        if run_id is None:
            created = client.create_run(number, run_name=printable(name), tags=text)
            run_id = created.info.run_id
        run = Run(client, run_id, number)
    try:
        run.params(params)
        yield run
        _finish(run)
    except BaseException as error:
        killed = isinstance(error, KeyboardInterrupt | SystemExit)  # by the user or a scheduler
        reason = f"{type(error).__name__}: {error}"[:5000] if isinstance(error, Exception) else ""
        with suppress(Exception):  # the error being raised matters more
            client.set_tag(run.run_id, ERROR, reason)
        with suppress(Exception):
            client.set_terminated(run.run_id, "KILLED" if killed else "FAILED")
        raise


def _begun(client: MlflowClient, experiment: str, tags: Mapping[str, Any]) -> str | None:
    """Reopen the run that has the same checkpoint and return its id; None if there is none."""
    if CHECKPOINT not in tags:
        return None
    for begun in client.search_runs([experiment], f"tags.{CHECKPOINT} = '{tags[CHECKPOINT]}'"):
        client.update_run(begun.info.run_id, status="RUNNING")
        if ERROR in begun.data.tags:
            client.delete_tag(begun.info.run_id, ERROR)
        return str(begun.info.run_id)
    return None


def _finish(run: Run) -> None:
    """Send what still waits, then mark the run as finished; UserError if the store refuses."""
    for pause in PATIENCE:
        time.sleep(pause)
        try:
            run.deliver()
            _files_to_disk(run)
            run.client.set_terminated(run.run_id, "FINISHED")
            return
        except Exception as error:  # whatever the store's driver raises
            reason = first_line(error)
    uri = without_password(run.client.tracking_uri)
    raise UserError(
        f"tracking.uri={uri} does not take what was measured: {reason}. Nothing is lost: run the "
        "same command again when the store is back, and all of it is sent without computing again."
    )


def _files_to_disk(run: Run) -> None:
    """Flush the run's local files, which the store only copied, before the run is finished."""
    place = local_path(run.client.get_run(run.run_id).info.artifact_uri)
    for path in place.rglob("*") if place else ():
        if path.is_file():
            to_disk(path)


def keep_report(uri: str, experiment: str, name: str, folder: Path, runs: int) -> str:
    """Log a report on ``runs`` runs as a run of the same experiment; return its id."""
    with run(connect(uri), experiment, name, {COMPARISON: runs}, {}) as report:
        report.folder(folder, "report")
    return report.run_id


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested configuration as dotted keys (``schedule.target``), lists as JSON."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = json.dumps(value) if isinstance(value, list) else value
    return flat


def _experiment(client: MlflowClient, name: str) -> str:
    """Return the number of an experiment; create it if new, its files beside an SQLite store."""
    entry = client.get_experiment_by_name(name) if name else None
    if entry is None:
        database = sqlite_file(client.tracking_uri)
        folder = re.sub(r"[^\w.-]|^[.]+", "_", name)
        if len(folder.encode()) > LONGEST_FOLDER:
            folder = f"{folder[:50]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
        place = files_beside(database, folder) if database else None
        try:
            return client.create_experiment(name, artifact_location=place)
        except MlflowException as error:
            entry = client.get_experiment_by_name(name) if name else None
            if entry is None:  # not created by another process meanwhile: the name is refused
                raise UserError(f"tracking.experiment={name} is not possible: {error}") from error
    if entry.lifecycle_stage == "deleted":
        raise UserError(
            f"tracking.experiment={name} was deleted in this store; give another name, or restore "
            f"it: mlflow experiments restore -x {entry.experiment_id}"
        )
    return entry.experiment_id
