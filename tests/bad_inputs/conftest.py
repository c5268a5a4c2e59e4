"""What tests of bad inputs share: one store, in which nothing is to be recorded."""

import pytest

from pruning_lab import tracking


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """One store for all: making it takes seconds."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    tracking.connect(f"sqlite:///{path}")
    return path
