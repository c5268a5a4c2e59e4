"""The names under which everything is written to MLflow, and read back."""

import hashlib
import re

from pruning_lab.track import MAIN

STEPS = "steps.csv"
BASELINE_SCORES = "scores/baseline.npz"

GROUPS = ("metric", "model", "dataset", "schedule", "finetune", "baseline", "setting",
          "metric_settings")  # fmt: skip
"""The tags by which runs are grouped."""

LONGEST_KEY = 250
"""How long MLflow lets a key be."""

SECTIONS = ("accuracy", "loss", "removed", "seconds")
"""The UI shows the charts of metrics in sections by what stands before the slash, ``cost`` too."""

COLOR = "mlflow.runColor"
"""The tag that says how the UI draws a run."""

COMPARISON = "comparison"
"""The tag of runs that hold a report: it says of how many runs."""

SEEN = "seen.json"
"""The file that says what a run was seen to read."""

ERROR = "error"
"""The tag that says why a run failed."""

IDENTITY = "identity"
"""The tag that names all that determines a run's result: who repeats a run has the same."""

CHECKPOINT = "checkpoint"
"""The tag by which a run that was cut off is found again; of every new try another one."""


def scores_file(step: int | None, track: str = MAIN) -> str:
    """Where the scores that led to a step of a track are; without step the baseline's."""
    return BASELINE_SCORES if step is None else f"scores/{prefix_of(track)}step_{step:03d}.npz"


def prefix_of(track: str) -> str:
    """What stands before the names of a track's metrics and files."""
    return "" if track == MAIN else f"{track}_"


def in_section(key: str) -> str:
    """The key of a metric with its section in front."""
    if "/" in key:
        return permitted(key)
    return permitted(f"{next((section for section in SECTIONS if section in key), 'cost')}/{key}")


def permitted(key: str) -> str:
    """A key as MLflow takes it for a metric, a parameter or a tag.

    That is of letters, digits and ``_-. :/``, at most 250 long, and no path that is written in a
    longer way than it must be. What has to be changed gets a hash of the original at its end, so
    that two keys stay two.
    """
    parts = [re.sub(r"[^\w.\- :]", "_", part) for part in key.split("/")]
    clean = "/".join(part for part in parts if part.strip("."))
    if clean == key and len(key) <= LONGEST_KEY:
        return key
    mark = hashlib.sha256(key.encode(errors="backslashreplace")).hexdigest()[:8]
    return f"{clean[: LONGEST_KEY - len(mark) - 1]}-{mark}"
