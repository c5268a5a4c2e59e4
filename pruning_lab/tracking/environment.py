"""What MLflow is told about this process; it must stand before mlflow is imported."""

import os

SETTINGS = {
    # where it finds no internet, it changes the environment in a thread, while requests to a
    # server read it: they fail then
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # what is not taken is sent later
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}

for name, value in SETTINGS.items():
    os.environ.setdefault(name, value)
