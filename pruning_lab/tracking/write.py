"""What is written to MLflow, while an experiment runs."""

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

from pruning_lab.atomic import to_disk
from pruning_lab.attributions.scores import Estimates, save_estimates
from pruning_lab.errors import UserError, printable
from pruning_lab.track import MAIN
from pruning_lab.tracking.keys import (
    CHECKPOINT,
    COLOR,
    COMPARISON,
    ERROR,
    STEPS,
    in_section,
    permitted,
    prefix_of,
    scores_file,
)
from pruning_lab.tracking.moved import files_beside, local_path
from pruning_lab.tracking.store import (
    connect,
    first_line,
    reaching,
    sqlite_file,
    without_password,
)

log = logging.getLogger(__name__)

LONGEST_FOLDER = 200
"""How many bytes a file system lets the name of a folder take, with room to spare."""

PAUSE = 60.0
"""Seconds before a store that did not answer is asked again."""

REFUSALS = (400, 413, 422)
"""Answers of a server that does not take what it was sent, whenever that is."""

PATIENCE = (0, 1, 5, 15)
"""Seconds between the last tries, when a run is at its end."""


class Run:
    """One MLflow run, from start to end.

    What the store does not take at once waits in memory, in its order, and is sent with what
    follows or at the end: a server that is away for a while stops no experiment. What it refuses
    for good is left out, alone, and said: it would hold up all that follows.
    """

    def __init__(self, client: MlflowClient, run_id: str, experiment_id: str = "0") -> None:
        self.client = client
        self.run_id = run_id
        self.experiment_id = experiment_id
        self._waiting: list[Callable[[], Any]] = []
        self._failed = float("-inf")

    def metrics(
        self,
        permille: int,
        values: Mapping[str, float],
        track: str = MAIN,
        at: float | None = None,
    ) -> None:
        """Log the numbers of one step, with the track before their names.

        MLflow's step is the permille of FLOPs removed: the default charts are then curves of
        accuracy over FLOPs. ``test_accuracy_after`` is ``accuracy/test_accuracy_after`` there.
        ``at`` is when they were measured (seconds since 1970): the same point logged again, with
        the same time, is one point.
        """
        when = int(1000 * (time.time() if at is None else at))
        metrics = [
            Metric(in_section(prefix_of(track) + k), float(v), when, permille)
            for k, v in values.items()
        ]
        self._send(lambda: self._log(metrics=metrics))

    def params(self, params: Mapping[str, Any]) -> None:
        """Log the configuration; what a run that goes on was begun with stays."""

        def send() -> None:
            known = self.client.get_run(self.run_id).data.params
            named = {permitted(key): printable(str(value)) for key, value in params.items()}
            self._log(params=[Param(k, value) for k, value in named.items() if k not in known])

        self._send(send)

    def figure(self, figure: Figure, name: str) -> None:
        """Log a figure as PNG."""
        content = io.BytesIO()
        with matplotlib.rc_context({"text.parse_math": False}):  # a name may hold a $
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
        """Log scores and errors as npz, keys ``criterion|layer``; the baseline's without step."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "scores.npz"
            save_estimates(estimates, path)
            self.file(path.read_bytes(), scores_file(step, track))

    def deliver(self) -> None:
        """Send all that waits; raises what the store raises, but for what it refuses for good."""
        while self._waiting:
            try:
                self._waiting[0]()
            except MlflowException as error:
                if not _refused_for_good(error):
                    raise
                self._leave_out("a file", error)
            del self._waiting[0]

    def _log(self, metrics: Sequence[Metric] = (), params: Sequence[Param] = ()) -> None:
        """Log metrics or parameters, one by one where some of them are refused for good."""
        try:
            self.client.log_batch(self.run_id, metrics=metrics, params=params)
        except MlflowException as error:
            if not _refused_for_good(error):
                raise
            if len(metrics) + len(params) == 1:
                (key,) = [each.key for each in metrics] + [each.key for each in params]
                self._leave_out(repr(key), error)
                return
            for each in metrics:
                self._log(metrics=[each])
            for one in params:
                self._log(params=[one])

    def _leave_out(self, what: str, error: Exception) -> None:
        log.warning(
            "MLflow does not take %s, and it is left out there (%s). The run's steps.csv and "
            "config.yaml have all numbers and settings.", what, first_line(error),
        )  # fmt: skip

    def file(self, content: bytes, name: str) -> None:
        """Log a file of this content."""

        def send() -> None:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / Path(name).name
                path.write_bytes(content)
                parent = str(Path(name).parent)
                self.client.log_artifact(self.run_id, str(path), None if parent == "." else parent)

        self._send(send)

    def _send(self, send: Callable[[], Any]) -> None:
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
    """A run that ends as FINISHED, or as FAILED (KILLED for Ctrl-C and exits) when the body raises.

    The run that has the same tag ``checkpoint`` is continued, where there is one.
    """
    text = {key: printable(str(value)) for key, value in tags.items()}
    text |= {COLOR: color} if color else {}
    with reaching(client.tracking_uri):
        number = _experiment(client, experiment)
        run_id = _begun(client, number, tags) or _new(client, number, printable(name), text)
        run = Run(client, run_id, number)
    status, reason = "FAILED", ""
    try:
        run.params(params)
        yield run
        _finish(run)
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):  # of the user, of a scheduler
        status = "KILLED"
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"[:5000]
        raise
    finally:
        if status != "FINISHED":
            with suppress(Exception):  # the error on its way says more
                client.set_tag(run.run_id, ERROR, reason)
            with suppress(Exception):
                client.set_terminated(run.run_id, status)


def _refused_for_good(error: MlflowException) -> bool:
    """Whether the store would refuse the same again: what is wrong is what it was sent."""
    return error.get_http_status_code() in REFUSALS


def _new(client: MlflowClient, experiment: str, name: str, tags: dict[str, str]) -> str:
    return str(client.create_run(experiment, run_name=name, tags=tags).info.run_id)


def _begun(client: MlflowClient, experiment: str, tags: Mapping[str, Any]) -> str | None:
    """The run that these tags began, running again; None where there is none."""
    if CHECKPOINT not in tags:
        return None
    for found in client.search_runs([experiment], f"tags.{CHECKPOINT} = '{tags[CHECKPOINT]}'"):
        client.update_run(found.info.run_id, status="RUNNING")
        if ERROR in found.data.tags:
            client.delete_tag(found.info.run_id, ERROR)
        return str(found.info.run_id)
    return None


def _finish(run: Run) -> None:
    """Send what still waits, then that the run is finished; UserError if the store refuses."""
    for pause in PATIENCE:
        time.sleep(pause)
        try:
            run.deliver()
            _files_to_disk(run)
            run.client.set_terminated(run.run_id, "FINISHED")
        except Exception as error:  # whatever the store's driver raises
            reason = first_line(error)
            continue
        return
    uri = without_password(run.client.tracking_uri)
    raise UserError(
        f"tracking.uri={uri} does not take what was measured: {reason}. Nothing is lost: run the "
        "same command again when the store is back, and all of it is sent without computing again."
    )


def _files_to_disk(run: Run) -> None:
    """Files that the store only copied are on the disk before the run is said to be finished."""
    place = local_path(run.client.get_run(run.run_id).info.artifact_uri)
    for path in place.rglob("*") if place else ():
        if path.is_file():
            to_disk(path)


def keep_report(uri: str, experiment: str, name: str, folder: Path, runs: int) -> str:
    """Log a report of so many runs as a run of its own, beside them; returns its id."""
    with run(connect(uri), experiment, name, {COMPARISON: runs}, {}) as made:
        made.folder(folder, "report")
    return made.run_id


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested configuration as dotted keys, ``schedule.target`` for example."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = json.dumps(value) if isinstance(value, list) else value
    return flat


def _experiment(client: MlflowClient, name: str) -> str:
    """The number of the experiment, made if it is new; beside an SQLite file lie its artifacts."""
    found = client.get_experiment_by_name(name) if name else None
    if found is None:
        database = sqlite_file(client.tracking_uri)
        folder = re.sub(r"[^\w.-]|^[.]+", "_", name)
        if len(folder.encode()) > LONGEST_FOLDER:
            folder = f"{folder[:50]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
        place = files_beside(database, folder) if database else None
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
