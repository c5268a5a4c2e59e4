"""The names under which everything is written to MLflow, and read back."""

from pruning_lab.track import MAIN

STEPS = "steps.csv"
BASELINE_SCORES = "scores/baseline.npz"

GROUPS = ("metric", "model", "dataset", "schedule", "finetune", "baseline", "setting",
          "metric_settings")  # fmt: skip
"""The tags by which runs are grouped."""

SECTIONS = ("accuracy", "loss", "removed", "seconds")
"""The UI shows the charts of metrics in sections by what stands before the slash, ``cost`` too."""

COLOR = "mlflow.runColor"
"""The tag that says how the UI draws a run."""

COMPARISON = "comparison"
"""The tag of runs that hold a report: it says of how many runs."""

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
        return key
    return f"{next((section for section in SECTIONS if section in key), 'cost')}/{key}"
