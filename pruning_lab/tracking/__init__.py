"""All access to MLflow: no other package of the project reads or writes its keys."""

import pruning_lab.tracking.environment  # noqa: F401  (before mlflow)
from pruning_lab.tracking.read import find_runs, read_estimates, read_runs, read_scores
from pruning_lab.tracking.store import connect

__all__ = ["connect", "find_runs", "read_estimates", "read_runs", "read_scores"]
