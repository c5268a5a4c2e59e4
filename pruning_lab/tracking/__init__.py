"""All access to MLflow: no other package of the project reads or writes its keys."""

import pruning_lab.tracking.environment  # noqa: F401  (before mlflow)
from pruning_lab.tracking.keys import (
    CHECKPOINT,
    COMPARISON,
    IDENTITY,
    SEEN,
    STEPS,
    chart_key,
)
from pruning_lab.tracking.read import (
    Finished,
    Runs,
    find_finished,
    find_runs,
    read_estimates,
    read_params,
    read_runs,
    read_scores,
)
from pruning_lab.tracking.store import MlflowClient, connect, number_of, where_to_look
from pruning_lab.tracking.write import Run, flatten, keep_report, run

__all__ = [
    "CHECKPOINT",
    "COMPARISON",
    "IDENTITY",
    "SEEN",
    "STEPS",
    "Finished",
    "MlflowClient",
    "Run",
    "Runs",
    "chart_key",
    "connect",
    "find_finished",
    "find_runs",
    "flatten",
    "keep_report",
    "number_of",
    "read_estimates",
    "read_params",
    "read_runs",
    "read_scores",
    "run",
    "where_to_look",
]
