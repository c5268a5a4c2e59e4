"""Many jobs of one command: what is left to do is said beforehand, what failed at the end."""

import json
import logging
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from tqdm import tqdm

from pruning_lab import tracking
from pruning_lab.atomic import write_json
from pruning_lab.errors import UserError
from pruning_lab.identity import identify
from pruning_lab.record import find_finished
from pruning_lab.resume import Checkpoint

log = logging.getLogger(__name__)

JOB = "job.json"
"""What became of a job, in its output folder."""

DONE, BEGUN, NEW = "finished", "to go on", "new"


class Sweep(Callback):
    """Hydra's callbacks: before the sweep in its process, around a job in whichever runs it."""

    folder: Path | None = None
    """Where the jobs of this process's sweep have their outputs."""

    begun: float = 0.0
    """When it began: the folder may have jobs of others before."""

    total: int | None = None
    """How many jobs it has, where that is known beforehand."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Say how many jobs are finished already, and how many are left."""
        if config.plan:
            return
        Sweep.folder, Sweep.begun = Path(config.hydra.sweep.dir).resolve(), time.time()
        jobs = _jobs(config)
        if jobs is None:
            return
        Sweep.total = len(jobs)
        name = config.hydra.job.config_name
        states = Counter(
            _state(compose(name, job)) for job in tqdm(jobs, "Jobs", disable=None, leave=False)
        )
        log.info(
            "%d jobs: %s", len(jobs), ", ".join(f"{states[s]} {s}" for s in (DONE, BEGUN, NEW))
        )
        if config.threads is None and "Basic" not in config.hydra.launcher._target_:
            log.warning(
                "threads is not set: how many a job takes, and with them the last bits of its "
                "numbers, depend on how many run at once. Set threads=1, for example."
            )

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        self._note(config, "cut off")  # until it ends in another way

    def on_job_end(self, config: DictConfig, job_return: Any, **_: Any) -> None:
        failed = isinstance(job_return._return_value, BaseException)
        self._note(config, str(job_return._return_value) if failed else None)

    def _note(self, config: DictConfig, problem: str | None) -> None:
        if config.hydra.mode == RunMode.MULTIRUN:
            overrides = [tracking.without_password(each) for each in config.hydra.overrides.task]
            content = {"overrides": overrides, "problem": problem, "time": time.time()}
            write_json(Path(config.hydra.runtime.output_dir) / JOB, content)


def report() -> None:
    """Say which jobs of this process's sweep did not finish, why, and what runs just these."""
    if Sweep.folder is None:
        return
    found = [json.loads(path.read_text()) for path in _in_order(Sweep.folder)]
    jobs = [job for job in found if job["time"] >= Sweep.begun]
    alike = set.intersection(*(set(job["overrides"]) for job in jobs)) if jobs else set()
    problems = [(job, job["problem"]) for job in jobs if job["problem"]]
    unseen = (Sweep.total or len(jobs)) - len(jobs)
    if not (problems or unseen):
        return
    print(f"\n{len(jobs) - len(problems)} of {unseen + len(jobs)} jobs finished. The others:")
    for job, problem in problems:
        own = [each for each in job["overrides"] if each not in alike] or job["overrides"]
        print(f"  {tracking.without_password(shlex.join(own))}")
        print(f"    {problem.strip().splitlines()[0]}")
    if unseen:
        print(f"  {unseen} jobs that were not begun")
    command = shlex.join(["python", "-m", "pruning_lab", *sys.argv[1:]])
    again = "also" if "force=true" in sys.argv else "not"
    print(f"What is finished is {again} run again by:\n  {tracking.without_password(command)}\n")


def _jobs(config: DictConfig) -> list[list[str]] | None:
    """The overrides of each job; None where the sweeper decides on the way."""
    if not config.hydra.sweeper._target_.endswith(f".{BasicSweeper.__name__}"):
        return None
    given = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    parsed = OverridesParser.create().parse_overrides([*given, *config.hydra.overrides.task])
    (jobs,) = BasicSweeper.split_arguments(parsed, None)
    return jobs


def _state(config: DictConfig) -> str:
    """Whether a configuration is finished, begun or new; what is impossible is new."""
    try:
        job = identify(config)
        if config.force:
            return NEW
        if find_finished(config, job):
            return DONE
        return BEGUN if Checkpoint(Path(config.checkpoints), job.name, job.seen).begun() else NEW
    except UserError:  # the job itself will say it
        return NEW


def _in_order(folder: Path) -> Iterator[Path]:
    """The notes of a sweep's jobs, by their numbers."""
    notes = folder.glob(f"*/{JOB}")
    return iter(sorted(notes, key=lambda path: (len(path.parent.name), path.parent.name)))
