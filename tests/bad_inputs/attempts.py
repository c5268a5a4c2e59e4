"""Experiments of bad inputs as far as they get, and what is said of a value more than once.

The tests beside have bad inputs one a line: what is given, and what is said before any work is
done. Other files test the commonest refusals of their own room; here are those of a sloppy or a
hostile user. Each message has the value that was wrong and what to do.
"""

import sqlite3

import pytest

from pruning_lab.errors import UserError
from tests.running import TINY, experiment

DATA = [override for override in TINY if not override.startswith("model")]

COUNT = "is not possible; it is a whole number from"
TEXT = "is not possible; it is text, .* for example"


def statuses(store):
    with sqlite3.connect(store) as database:
        return [status for (status,) in database.execute("select status from runs")]


def prepared(folder, store, overrides):
    """The experiment of these overrides, in whose text {folder} may stand."""
    chosen = any(override.startswith("model=") for override in overrides)
    base = [*(DATA if chosen else TINY), "attributions=none"]
    overrides = [override.format(folder=folder) for override in overrides]
    built = experiment(folder, f"tracking.uri=sqlite:///{store}", *overrides, base=base)
    assert built.client  # connects, as a run does before anything else
    return built


def check_refused(case, folder, monkeypatch):
    """A case is what is attempted in a folder, and the message that refuses it."""
    monkeypatch.chdir(folder)
    attempt, message = case
    with pytest.raises(UserError, match=f"(?s){message}"):
        attempt(folder)
    assert not (folder / "harm").exists()  # what code in a file would leave
