"""Read the scores and the configuration that runs recorded besides their steps."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress

import pandas as pd

from pruning_lab.attributions.estimation.scores import Scores
from pruning_lab.compare.agreement import between_scorings
from pruning_lab.compare.runs import rows_of
from pruning_lab.errors import UserError
from pruning_lab.records.step import MAIN, UNTUNED
from pruning_lab.tracking.read import read_params, read_scores

SETTINGS = ("model.", "task.", "dataset.", "schedule.", "finetune.", "baseline.training.",
            "after_cut.", "scoring.")  # fmt: skip
"""Prefixes of the settings that concern neither the criterion nor the seeds."""

LISTED = (*SETTINGS, "controls.", "threads")
"""Prefixes of the settings that a report lists."""

COMPARED = (*SETTINGS, "baseline.checkpoint")
"""Prefixes of the settings in which runs must agree to be compared."""

PLACES = (".root", ".download", ".debian_package")
"""Suffixes of settings that only say where the data are."""

CHOSEN = ("finetune.", "after_cut.")
"""Prefixes of the settings that may be chosen per criterion: those of what follows a cut."""

SECOND = 2
"""First step whose scores are those of a fine-tuned network."""


def baseline_scores(runs: pd.DataFrame, uri: str) -> dict[str, Scores]:
    """Return the scores of each baseline that has those of several criteria, read from its runs."""
    told_apart = {metric.split(" ")[0] for metric in runs["metric"] if " " in metric}
    recorded: dict[str, Scores] = {name: {} for name in runs["baseline"]}
    rows = runs[["baseline", "metric", "run_id"]].drop_duplicates()
    for baseline, metric, run in rows.itertuples(index=False):
        scores = recorded[baseline]
        if metric in scores:
            continue
        with suppress(UserError):  # the run has no scores
            for name, layers in read_scores(uri, run).items():
                if name == metric.split(" ")[0]:
                    scores.setdefault(metric, layers)
                elif name not in told_apart:
                    scores.setdefault(name, layers)
    return {name: scores for name, scores in recorded.items() if len(scores) > 1}


def tuned_scores(runs: pd.DataFrame, uri: str) -> pd.DataFrame:
    """Return the agreement of each run's scores before and after the fine-tuning of its first cut.

    Scores before it are read from the untuned track, whose first cut is the same.
    """
    tables = []
    untuned = rows_of(runs, UNTUNED)
    second = untuned[untuned["step"] == SECOND]
    for metric, run in second[["metric", "run_id"]].itertuples(index=False):
        with suppress(UserError):  # the run has no scores, or of other layers
            pair = [read_scores(uri, run, SECOND, track) for track in (UNTUNED, MAIN)]
            before, after = (layers for scores in pair for layers in scores.values())
            tables.append(between_scorings([before, after]).assign(metric=metric))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def options(text: str) -> str:
    """Return the options of a criterion that were set, formatted as in the configuration."""
    items = json.loads(text).items()
    set_ones = (f"{key}={value}" for key, value in items if key[0] != "_" and value is not None)
    return ", ".join(set_ones) or "no options"


def shared_options(runs: pd.DataFrame, uri: str) -> pd.DataFrame:
    """Return the configuration that all runs share, read from the first of them.

    A setting that has a column in ``runs`` was chosen per criterion and is not shared.
    """
    params = read_params(uri, runs["run_id"].iloc[0])
    shared = {
        key: value
        for key, value in params.items()
        if key.startswith(LISTED) and not key.endswith(PLACES) and value != "None"
    }
    frame = pd.DataFrame({"value": shared}).rename_axis("option").sort_index()
    return frame.drop(index=runs.columns, errors="ignore")


def with_value(runs: pd.DataFrame, uri: str, key: str) -> pd.DataFrame:
    """Return the runs with the value of a setting in the column ``key``.

    ``setting`` becomes a hash of the configuration without ``key``, so that runs that otherwise
    differ only in criterion and seeds may be compared. Raises UserError if no run has the setting,
    if it is not one of ``CHOSEN``, and for runs of equal configuration that differ in something
    else, such as the content of their data.
    """
    params = {run: read_params(uri, run) for run in runs["run_id"].unique()}
    known = sorted({name for names in params.values() for name in names if name.startswith(CHOSEN)})
    if key not in known:
        raise UserError(
            f"{key} cannot be chosen for each criterion. Of the settings of these runs, these can: "
            f"{', '.join(known) or 'none'}."
        )
    rest = {run: _hash_without(key, config) for run, config in params.items()}
    values = {run: number_or_text(config[key]) for run, config in params.items() if key in config}
    keyed = runs.assign(**{key: runs["run_id"].map(values), "setting": runs["run_id"].map(rest)})
    for (_, value), settings in runs["setting"].groupby([keyed["setting"], keyed[key]]):
        if settings.nunique() > 1:
            raise UserError(
                f"Runs with {key}={value} have the same configuration but other data, or were "
                f"recorded by other versions (settings {', '.join(settings.unique())}). Read those "
                "of one kind alone, by --experiment, --since and --until."
            )
    return keyed


def number_or_text(text: str) -> float | str:
    """Convert the value of a setting for comparison: ``1e-3`` equals ``0.001``."""
    try:
        return float(text)
    except ValueError:
        return text


def _hash_without(key: str, params: Mapping[str, str]) -> str:
    """Return 12 hex digits for a run's settings without ``key``, criterion, seeds and places."""
    rest = {
        name: value
        for name, value in params.items()
        if name.startswith(COMPARED) and not name.endswith(PLACES) and name != key
    }
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:12]
