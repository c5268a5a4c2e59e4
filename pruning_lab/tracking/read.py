"""Read recorded runs from MLflow."""

import json
import tempfile
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pruning_lab.attributions.estimation.scores import Estimates, Scores, load_estimates, scores_of
from pruning_lab.errors import UserError
from pruning_lab.records.step import MAIN
from pruning_lab.tasks.task import Measure, measure_from
from pruning_lab.tracking.keys import (
    COMPARISON,
    ERROR,
    GROUPS,
    IDENTITY,
    SEEN,
    STEPS,
    chart_key,
    scores_file,
)
from pruning_lab.tracking.store import connect, connect_to_read, local_path, reaching, sqlite_file

NAME = "mlflow.runName"
UNFINISHED = {"RUNNING": "not finished", "SCHEDULED": "not started", "KILLED": "was interrupted"}


@dataclass(frozen=True)
class Runs:
    """Usable runs as a tidy ``frame``, and the others in ``left_out``: run_id, run, reason."""

    frame: pd.DataFrame
    left_out: pd.DataFrame


@dataclass(frozen=True)
class Finished:
    """A finished run, which need not be repeated.

    ``val`` and ``test`` are the primary measure after the last step; ``seen`` lists the inputs.
    """

    run_id: str
    name: str
    val: float
    test: float
    experiment_id: str
    seen: dict[str, Any] | None


def read_runs(uri: str, *experiments: str) -> pd.DataFrame:
    """Return all finished runs of ``experiments`` in the store ``uri`` as a tidy frame.

    It has one row per run, track and step. Columns: ``run_id metric model dataset schedule
    finetune baseline setting metric_settings block measure measure_label measure_unit
    measure_better seed track`` and those of the run's step table. Raises UserError for no
    experiment, or one that does not exist.
    """
    if not experiments:
        raise UserError("Name one experiment or more: 'pruning_lab' is the default of the runs.")
    return find_runs(uri, experiments).frame


def find_runs(
    uri: str,
    experiments: Sequence[str],
    tags: Mapping[str, str] | None = None,
    since: date | None = None,
    until: date | None = None,
) -> Runs:
    """Return the runs of ``experiments`` in the store ``uri`` that have all ``tags``.

    ``since`` and ``until`` are the first and last day (UTC) on which they may have begun. Of runs
    that repeat each other only the newest is read. ``left_out`` gives a reason for all runs that
    pass the filters but are not in the frame. Raises UserError for an experiment or a tag that
    does not exist.
    """
    client = connect_to_read(uri)
    seen: set[tuple[str, Hashable]] = set()
    tables, usable, left_out = {}, [], []
    for run in _filtered(_recorded(client, experiments), tags or {}, since, until):
        settings = run.data.tags.get(IDENTITY) or tuple(sorted(run.data.params.items()))
        identity = (run.info.experiment_id, settings)
        reason = _unusable(run) or ("a newer run repeats it" if identity in seen else None)
        if reason is None:
            try:
                with _file(client, run, STEPS) as path:
                    tables[run.info.run_id] = pd.read_csv(path)
            except (ValueError, OSError) as error:
                reason = f"its steps cannot be read: {error}"
        if reason is not None:
            left_out.append((run.info.run_id, run.data.tags.get(NAME, ""), reason))
            continue
        seen.add(identity)
        usable.append(run)
    return Runs(_frame(usable, tables), pd.DataFrame(left_out, columns=["run_id", "run", "reason"]))


def find_finished(uri: str, experiment: str, identity: str, measure: Measure) -> list[Finished]:
    """Return the finished runs with this identity, newest first; none if there is no store yet.

    Runs without the measure, or whose step table cannot be read, are left out.
    """
    file = sqlite_file(uri)
    if file is not None and not file.is_file():
        return []
    client = connect(uri)
    query = f"tags.{IDENTITY} = '{identity}' and attributes.status = 'FINISHED'"
    with reaching(uri):
        entry = client.get_experiment_by_name(experiment) if experiment else None
        runs = client.search_runs([entry.experiment_id], query) if entry else []
    val, test = (
        chart_key(measure.chart, f"{name}_{measure.name}_after") for name in ("val", "test")
    )
    usable = []
    for run in runs:
        info, metrics = run.info, run.data.metrics
        with suppress(UserError, OSError, KeyError), _file(client, run, STEPS):
            last = (metrics[val], metrics[test], info.experiment_id, _seen(client, run))
            usable.append(Finished(info.run_id, info.run_name, *last))
    return usable


def _seen(client: MlflowClient, run: Run) -> dict[str, Any] | None:
    """Return the inputs that a run was observed to read; None if it did not record them."""
    with suppress(UserError, ValueError, OSError), _file(client, run, SEEN) as path:
        return dict(json.loads(path.read_text()))
    return None


def read_scores(uri: str, run_id: str, step: int | None = None, track: str = MAIN) -> Scores:
    """Return scores of the run ``run_id`` in the store ``uri``, by criterion and layer.

    Without ``step`` those of all criteria on the baseline; otherwise those that led to this step
    of ``track``. Raises UserError if the run has none.
    """
    return scores_of(read_estimates(uri, run_id, step, track))


def read_estimates(uri: str, run_id: str, step: int | None = None, track: str = MAIN) -> Estimates:
    """Return the scores as ``read_scores`` does, with their errors where those are known.

    Raises UserError if the run ``run_id`` in the store ``uri`` has none for ``step`` and ``track``.
    """
    with _file(*_opened(uri, run_id), scores_file(step, track)) as path:
        return load_estimates(path)


@lru_cache(maxsize=1)  # several files of a run are read one after the other
def _opened(uri: str, run_id: str) -> tuple[MlflowClient, Run]:
    client = connect_to_read(uri)
    return client, client.get_run(run_id)


def read_params(uri: str, run_id: str) -> dict[str, str]:
    """Return the configuration of the run ``run_id`` in the store ``uri`` as dotted keys."""
    return dict(connect_to_read(uri).get_run(run_id).data.params)


def _recorded(client: MlflowClient, experiments: Sequence[str]) -> list[Run]:
    """Return all runs of experiments, newest first."""
    ids = []
    for name in experiments:
        entry = client.get_experiment_by_name(name)
        if entry is None:
            names = ", ".join(e.name for e in client.search_experiments()) or "none"
            raise UserError(f"There is no experiment '{name}' in this store; there are: {names}.")
        ids.append(entry.experiment_id)
    page = client.search_runs(ids)
    runs = list(page)
    while page.token:
        page = client.search_runs(ids, page_token=page.token)
        runs += page
    return runs


def _filtered(
    runs: Sequence[Run], tags: Mapping[str, str], since: date | None, until: date | None
) -> list[Run]:
    for key, value in tags.items():
        values = sorted({run.data.tags[key] for run in runs if key in run.data.tags})
        if value not in values:
            known = ", ".join(values) or "no run has such a tag"
            raise UserError(f"No run has the tag {key}={value}; there are: {known}.")
    first, last = since or date.min, until or date.max
    return [
        run
        for run in runs
        if COMPARISON not in run.data.tags
        and first <= datetime.fromtimestamp(run.info.start_time / 1000, UTC).date() <= last
        and tags.items() <= run.data.tags.items()
    ]


def _unusable(run: Run) -> str | None:
    """Return the reason why a run cannot be used; None if it can."""
    if run.info.status == "FAILED":
        return f"failed: {run.data.tags.get(ERROR, 'for a reason that was not recorded')}"
    if run.info.status != "FINISHED":
        return UNFINISHED.get(run.info.status, run.info.status.lower())
    missing = [key for key in (*GROUPS, "seed") if key not in run.data.tags]
    return f"is no experiment of pruning_lab: it has no tag '{missing[0]}'" if missing else None


def _frame(runs: Sequence[Run], tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Concatenate the runs' step tables, with the columns to group by in front."""
    if not runs:
        return pd.DataFrame()
    heads = []
    for run in runs:
        tags = {key: run.data.tags[key] for key in GROUPS}
        tags["block"] = run.data.tags.get("block", tags["baseline"])  # old versions have no block
        tags |= measure_from(run.data.tags).recorded()
        heads.append({"run_id": run.info.run_id, **tags, "seed": int(run.data.tags["seed"])})
    steps = pd.concat(tables, names=["run_id", None]).reset_index("run_id")
    if "track" not in steps:
        steps.insert(1, "track", MAIN)
    steps["track"] = steps["track"].fillna(MAIN)  # a version without controls
    return pd.DataFrame(heads).merge(steps, on="run_id", sort=False)


@contextmanager
def _file(client: MlflowClient, run: Run, name: str) -> Iterator[Path]:
    """Yield the path of a run's file; a downloaded copy is removed afterwards."""
    place = local_path(run.info.artifact_uri)
    if place is not None:
        path = place / name
        if not path.is_file():
            raise UserError(f"The run {run.info.run_id} has no file {name}: {path} is not there.")
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:  # MLflow never removes its own
        try:
            downloaded = client.download_artifacts(run.info.run_id, name, folder)
        except MlflowException as error:
            raise UserError(f"The run {run.info.run_id} has no file {name}: {error}") from error
        yield Path(downloaded)
