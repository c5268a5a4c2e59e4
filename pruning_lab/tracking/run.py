"""What is written to MLflow, while an experiment runs."""

import json
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pruning_lab.attributions.scores import Estimates, save_estimates
from pruning_lab.errors import UserError
from pruning_lab.track import MAIN
from pruning_lab.tracking.keys import (
    COLOR,
    COMPARISON,
    ERROR,
    STEPS,
    in_section,
    prefix_of,
    scores_file,
)
from pruning_lab.tracking.store import connect, sqlite_file


class Run:
    """One MLflow run, from start to end."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self.client = client
        self.run_id = run_id

    def metrics(self, permille: int, values: Mapping[str, float], track: str = MAIN) -> None:
        """Log the numbers of one step, with the track before their names.

        MLflow's step is the permille of FLOPs removed: the default charts are then curves of
        accuracy over FLOPs. ``test_accuracy_after`` is ``accuracy/test_accuracy_after`` there.
        """
        now = int(1000 * time.time())
        self.client.log_batch(
            self.run_id,
            metrics=[
                Metric(in_section(prefix_of(track) + k), float(v), now, permille)
                for k, v in values.items()
            ],
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

    def scores(self, estimates: Estimates, step: int | None = None, track: str = MAIN) -> None:
        """Log scores and errors as npz, keys ``criterion|layer``; the baseline's without step."""
        name = scores_file(step, track)
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
        client.set_tag(run_id, ERROR, f"{type(error).__name__}: {error}"[:5000])
        raise
    finally:
        client.set_terminated(run_id, status)


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
