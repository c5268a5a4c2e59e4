"""Names of tags, metrics and files in MLflow, for writing and for reading."""

import hashlib
import re

from pruning_lab.records.step import MAIN

STEPS = "steps.csv"
GROUPS = ("metric", "model", "dataset", "schedule", "finetune", "baseline", "setting",
          "metric_settings")  # fmt: skip
"""Tags by which runs are grouped."""

LONGEST_KEY = 250
"""Longest key that MLflow accepts, in characters."""

COLOR = "mlflow.runColor"
"""Tag: the colour of a run in MLflow's UI."""

COMPARISON = "comparison"
"""Tag of runs that hold a report; its value is the number of runs compared."""

SEEN = "seen.json"
"""File that lists the inputs that a run was observed to read."""

ERROR = "error"
"""Tag: the reason why a run failed."""

IDENTITY = "identity"
"""Tag: fingerprint of everything that determines a run's result; equal for repeated runs."""

CHECKPOINT = "checkpoint"
"""Tag: token by which an interrupted run is found and continued; every new start has its own."""


def scores_file(step: int | None, track: str = MAIN) -> str:
    """Return the path of the scores that led to a step; without ``step``, of the baseline's."""
    if step is None:
        return "scores/baseline.npz"
    return f"scores/{_prefix(track)}step_{step:03d}.npz"


def _prefix(track: str) -> str:
    return "" if track == MAIN else f"{track}_"


def chart_key(chart: str, name: str, track: str = MAIN) -> str:
    """Return the key of a metric: its chart's section, a slash, and its name with the track.

    ``test_rmse_after`` becomes ``rmse/test_rmse_after``. A name that already has a
    section (``width/conv1``) is kept.
    """
    return permitted(name if "/" in name else f"{chart}/{_prefix(track)}{name}")


def permitted(key: str) -> str:
    """Convert a key to one that MLflow accepts for a metric, a parameter or a tag.

    Accepted are letters, digits and ``_-. :/``, at most 250 characters, and paths in their shortest
    form. A changed key ends in a hash of the original, so that different keys stay different.
    """
    parts = [re.sub(r"[^\w.\- :]", "_", part) for part in key.split("/")]
    clean = "/".join(part for part in parts if part.strip("."))
    if clean == key and len(key) <= LONGEST_KEY:
        return key
    mark = hashlib.sha256(key.encode(errors="backslashreplace")).hexdigest()[:8]
    return f"{clean[: LONGEST_KEY - len(mark) - 1]}-{mark}"
