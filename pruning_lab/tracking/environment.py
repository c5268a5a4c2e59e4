"""MLflow's environment variables in this process; import this module before mlflow."""

import os

SETTINGS = {
    # without internet access, telemetry changes the environment in a thread while requests to a
    # server read it, and these then fail
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # Run sends failed requests again later
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}

for name, value in SETTINGS.items():
    os.environ.setdefault(name, value)
