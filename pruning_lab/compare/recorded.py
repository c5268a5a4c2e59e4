"""What runs have recorded beside their rows: their scores and their configuration."""

import hashlib
import json
from collections.abc import Mapping, Sequence

import pandas as pd

from pruning_lab.attributions.scores import Scores
from pruning_lab.compare.agreement import between_scorings
from pruning_lab.compare.runs import rows_of
from pruning_lab.errors import UserError
from pruning_lab.track import MAIN, UNTUNED
from pruning_lab.tracking import read_params, read_scores

SHARED = ("model.", "dataset.", "schedule.", "finetune.", "baseline.training.", "after_cut.",
          "controls.", "scoring.", "threads")  # fmt: skip
"""The parts of the configuration that say what was run, without criterion and seeds."""

PLACES = (".root", ".download", ".debian_package")
"""What in them says only where the data are."""

SETTING = ("model.", "dataset.", "schedule.", "finetune.", "baseline.training.",
           "baseline.checkpoint", "after_cut.", "scoring.")  # fmt: skip
"""The parts in which runs must agree to be compared."""

CHOSEN = ("finetune.", "after_cut.")
"""The parts of which a setting may be chosen for each criterion: what is done after a cut."""

SECOND = 2
"""The first step whose scores are those of a network that was fine-tuned."""


def baseline_scores(runs: pd.DataFrame, uri: str) -> dict[str, Scores]:
    """What the criteria say about each baseline on which there are several, by its runs."""
    told_apart = {metric.split(" ")[0] for metric in runs["metric"] if " " in metric}
    found: dict[str, Scores] = {name: {} for name in runs["baseline"]}
    every = runs[["baseline", "metric", "run_id"]].drop_duplicates()
    for baseline, metric, run in every.itertuples(index=False):
        if metric in found[baseline]:
            continue
        try:
            scores = read_scores(uri, run)
        except UserError:  # it has none
            continue
        for name, layers in scores.items():
            own = name == metric.split(" ")[0]
            if own or name not in told_apart:
                found[baseline].setdefault(metric if own else name, layers)
    return {name: scores for name, scores in found.items() if len(scores) > 1}


def tuned_scores(runs: pd.DataFrame, uri: str) -> pd.DataFrame:
    """Agreement of each run's scores of what its first cut left, before and after fine-tuning.

    The untuned track has those before: its first cut is the same.
    """
    found = []
    for (metric, run), rows in rows_of(runs, UNTUNED).groupby(["metric", "run_id"], sort=False):
        if (rows["step"] == SECOND).any():
            try:
                pair = [read_scores(uri, run, SECOND, track) for track in (UNTUNED, MAIN)]
                before, after = (layers for each in pair for layers in each.values())
                found.append(between_scorings([before, after]).assign(metric=metric))
            except UserError:  # it has none, or of other layers
                continue
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def options(texts: Sequence[str]) -> str:
    """The options of a criterion that were set, as they stand in the configuration."""
    found = json.loads(texts[0]).items()
    set_ones = (f"{key}={value}" for key, value in found if key[0] != "_" and value is not None)
    return ", ".join(set_ones) or "no options"


def shared_options(runs: pd.DataFrame, uri: str) -> pd.DataFrame:
    """The configuration of what all runs have alike, by one of them.

    A setting with a column of its own was chosen for each criterion: it is not shared.
    """
    params = read_params(uri, runs["run_id"].iloc[0])
    shared = {
        key: value
        for key, value in params.items()
        if key.startswith(SHARED) and not key.endswith(PLACES) and value != "None"
    }
    frame = pd.DataFrame({"value": shared}).rename_axis("option").sort_index()
    return frame.drop(index=runs.columns, errors="ignore")


def with_value(runs: pd.DataFrame, uri: str, key: str) -> pd.DataFrame:
    """Return the runs with the value of a setting in the column ``key``.

    ``setting`` is then a hash of the configuration without it, so that runs that differ in nothing
    else (but criterion and seeds) may be compared. Raises UserError for a setting that no run has,
    for one that is no part of what is done after a cut, and for runs of equal configuration that
    differ in what the configuration does not tell, the content of their data for example.
    """
    params = {run: read_params(uri, run) for run in runs["run_id"].unique()}
    known = sorted({name for each in params.values() for name in each if name.startswith(CHOSEN)})
    if key not in known:
        raise UserError(
            f"{key} cannot be chosen for each criterion. Of the settings of these runs, these can: "
            f"{', '.join(known) or 'none'}."
        )
    rest = {run: _hash_without(key, each) for run, each in params.items()}
    values = {run: number_or_text(each[key]) for run, each in params.items() if key in each}
    found = runs.assign(**{key: runs["run_id"].map(values), "setting": runs["run_id"].map(rest)})
    for (_, value), settings in runs["setting"].groupby([found["setting"], found[key]]):
        if settings.nunique() > 1:
            raise UserError(
                f"Runs with {key}={value} have the same configuration but other data, or were "
                f"recorded by other versions (settings {', '.join(settings.unique())}). Read those "
                "of one kind alone, by --experiment, --since and --until."
            )
    return found


def number_or_text(text: str) -> float | str:
    """The value of a setting as it is compared: ``1e-3`` is ``0.001``."""
    try:
        return float(text)
    except ValueError:
        return text


def _hash_without(key: str, params: Mapping[str, str]) -> str:
    """Twelve digits for all settings of a run but one, criterion, seeds and places."""
    rest = {
        name: value
        for name, value in params.items()
        if name.startswith(SETTING) and not name.endswith(PLACES) and name != key
    }
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:12]
