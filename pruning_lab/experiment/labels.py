"""The labels of a run in MLflow: its name, and the tags that runs are grouped by."""

import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pruning_lab import __version__
from pruning_lab.compare.runs import GIVEN
from pruning_lab.config.build import plain
from pruning_lab.config.sections import Names
from pruning_lab.experiment.fingerprint import identity
from pruning_lab.experiment.setup import Setup

NOT_IN_NAME = (
    "model", "metric", "seed", "dry_run", "plan", "force", "keep", "threads", "device",
    "tracking.uri", "tracking.experiment", "baseline.folder", "checkpoints", "attributions",
)  # fmt: skip
"""Settings that a run's name says already, or that determine nothing of what it shows."""


LONGEST_NAME = 250


def run_name(names: Names, seed: int, overrides: Sequence[str]) -> str:
    """Return a run's name in MLflow: model, criterion, seed, and settings that are not default."""
    settings = [each.lstrip("+~") for each in overrides if not each.startswith("hydra")]
    own = [each for each in settings if each.partition("=")[0] not in NOT_IN_NAME]
    return " ".join([names.model, names.metric, f"seed {seed}", *own])[:LONGEST_NAME]


def tags(setup: Setup) -> dict[str, Any]:
    """Return the tags by which runs are grouped, and those of the primary measure."""
    own = {k: v for k, v in plain(setup.config.metric).items() if k not in ("_partial_", "seed")}
    return asdict(setup.names) | setup.task.primary.recorded() | {
        "seed": setup.settings.seed,
        "baseline": setup.baseline.name,
        "block": block(setup),
        "setting": setting(setup),
        "metric_settings": json.dumps(own),
        "git_commit": git_commit(),
    }  # fmt: skip


def block(setup: Setup) -> str:
    """Return the block of a run: the seeds of the network that it starts from.

    Runs that start from the same given weights form one block, whatever their seeds. The order of
    the data is no seed of a network that is not trained.
    """
    if setup.settings.given_weights:
        return GIVEN
    seeds = setup.settings.seeds
    return f"init {seeds.init}" + (f", order {seeds.order}" if setup.training else "")


def setting(setup: Setup) -> str:
    """A hash of what runs share whose curves can be compared: all but criterion and seeds."""
    start = ("model", "task", "dataset", "samples", "training", "checkpoint")
    shared = {key: setup.baseline.determinants[key] for key in start}
    config = setup.config
    shared |= {key: plain(config[key]) for key in ("schedule", "finetune", "after_cut", "scoring")}
    return identity(shared)


def git_commit() -> str:
    """The commit of the code where it is a checkout, "-dirty" with changes; else its release."""
    root, git = Path(__file__).parents[2], shutil.which("git")
    if git is None or not (root / ".git").exists():
        return f"release {__version__}"
    command = [git, "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    return done.stdout.strip() or f"release {__version__}"
