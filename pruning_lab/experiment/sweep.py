"""Many jobs of one command: what is left to do is said beforehand, what failed at the end."""

import copy
import json
import logging
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, NoReturn
from uuid import uuid4

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, flag_override, open_dict
from tqdm import tqdm

from pruning_lab.config.build import build
from pruning_lab.config.sections import without_password
from pruning_lab.errors import UserError
from pruning_lab.experiment.fingerprint import identify
from pruning_lab.experiment.recorder import find_finished
from pruning_lab.experiment.resume import Checkpoint
from pruning_lab.runtime.files import write_json
from pruning_lab.tasks import Task
from pruning_lab.tracking import store

log = logging.getLogger(__name__)

NOTES = ".jobs"
"""In a sweep's folder: what became of its jobs, wherever their outputs are."""

DONE, BEGUN, NEW = "finished", "to go on", "new"


class Sweep(Callback):
    """Hydra's callbacks: before the sweep in its process, around a job in whichever runs it.

    Launchers hand a copy with what is known before the sweep to the processes of its jobs.
    """

    current: ClassVar["Sweep | None"] = None
    """The sweep that this process began."""

    notes: Path | None = None
    """The folder of this sweep's notes, one file a job; None where none are taken."""

    total: int | None = None
    """The number of jobs; None if the sweeper decides it while it runs."""

    store: tuple[str, str] = ("", "")
    """The address of the tracking store, and the experiment's name there."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Say how many jobs are finished already, and how many are left."""
        if "direction" in config.hydra.sweeper:
            _set_direction(config)
        if config.get("dry_run"):
            return
        notes = Path(config.hydra.sweep.dir).resolve() / NOTES / uuid4().hex  # its time stands now
        try:
            jobs = _jobs(config)
            states = None if jobs is None else _states(config, jobs)
        except HydraException:
            return  # Hydra itself will say it
        if jobs is None and not OmegaConf.is_interpolation(config.hydra.sweep, "subdir"):
            _refuse_folder(f"All jobs would write to {config.hydra.sweep.subdir}")
        self.notes, Sweep.current = notes, self
        self.store = (config.tracking.uri, config.tracking.experiment)
        if states is not None:
            self.total = states.total()
            counts = ", ".join(f"{states[s]} {s}" for s in (DONE, BEGUN, NEW))
            log.info("%d jobs: %s", self.total, counts)
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
        if self.notes is not None:
            job = config.hydra
            overrides = [without_password(each) for each in job.overrides.task]
            content = {"overrides": overrides, "problem": problem, "output": job.runtime.output_dir}
            write_json(self.notes / f"{job.job.num:09d}.json", content)


def report() -> None:
    """Say which jobs of this process's sweep did not finish, why, what runs just these.

    And where all curves are.
    """
    sweep = Sweep.current
    if sweep is None or sweep.notes is None:
        return
    with suppress(UserError):  # no run was recorded, or the store is away
        number = store.number_of(*sweep.store)
        where = store.where_to_look(sweep.store[0], number)
        print(f"\n{'All curves':13} {where}\n")
    jobs = [json.loads(path.read_text()) for path in sorted(sweep.notes.glob("*.json"))]
    alike = set.intersection(*(set(job["overrides"]) for job in jobs)) if jobs else set()
    problems = [(job, job["problem"]) for job in jobs if job["problem"]]
    unseen = (sweep.total or len(jobs)) - len(jobs)
    if jobs and not (problems or unseen):
        print(f"All {len(jobs)} jobs finished.\n")
        return
    all_jobs = f"{unseen + len(jobs)} jobs" if sweep.total else f"{len(jobs)} jobs that began"
    print(f"\n{len(jobs) - len(problems)} of {all_jobs} finished. The others:")
    for job, problem in problems:
        own = [each for each in job["overrides"] if each not in alike] or job["overrides"]
        print(f"  {without_password(shlex.join(own))}")
        print(f"    {problem.strip().splitlines()[0]}")
    if unseen:
        print(f"  {unseen} jobs that were not started (or could not write to {sweep.notes})")
    command = shlex.join(["python", "-m", "pruning_lab", *sys.argv[1:]])
    again = "also" if "force=true" in sys.argv else "not"
    print(f"What is finished is {again} run again by:\n  {without_password(command)}\n")


def _jobs(config: DictConfig) -> Sequence[Sequence[str]] | None:
    """The overrides of each job; None where the sweeper decides on the way."""
    if not config.hydra.sweeper._target_.endswith(f".{BasicSweeper.__name__}"):
        return None
    given = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    parsed = parser.parse_overrides([*given, *config.hydra.overrides.task])
    (jobs,) = BasicSweeper.split_arguments(parsed, None)
    return jobs


def _states(config: DictConfig, jobs: Sequence[Sequence[str]]) -> Counter[str]:
    """Count finished, begun and new jobs; end the sweep if two would share a folder."""
    states, folders = Counter[str](), dict[Path, int]()
    for number, job in enumerate(_composed(config, tqdm(jobs, "Jobs", disable=None, leave=False))):
        folder = Path(job.hydra.sweep.dir, job.hydra.sweep.subdir).resolve()
        other = folders.setdefault(folder, number)
        if other != number:
            _refuse_folder(f"Jobs {other} and {number} would both write to {folder}")
        task = copy.deepcopy(job)
        with flag_override(task, ["readonly", "struct"], False):
            del task["hydra"]
        states[_state(task)] += 1
    return states


def _composed(config: DictConfig, jobs: Iterable[Sequence[str]]) -> Iterator[DictConfig]:
    """The configuration of each job, as its launcher will have it."""
    hydra, before = HydraConfig.instance(), HydraConfig.instance().cfg
    try:
        for number, overrides in enumerate(jobs):
            job = GlobalHydra.instance().config_loader().load_sweep_config(config, list(overrides))
            with open_dict(job):
                job.hydra.job.id = job.hydra.job.num = number
            hydra.set_config(job)  # which ${hydra:...} refers to
            yield job
    finally:
        hydra.cfg = before


def _refuse_folder(reason: str) -> NoReturn:
    """An exit, since Hydra makes warnings of a callback's exceptions."""
    sys.exit(
        f"{reason}. Leave hydra.sweep.subdir out, or let it hold ${{hydra.job.num}}, the number of "
        "the job."
    )


def _set_direction(config: DictConfig) -> None:
    """Let a sweeper that searches seek better values of the primary measure on val.

    Ends the sweep for what would choose by anything else.
    """
    sweeper, parser = config.hydra.sweeper, OverridesParser.create()
    if config.dry_run:
        sys.exit("dry_run=true has no results to search by: give it without -m, for one job.")
    overrides = parser.parse_overrides(list(config.hydra.overrides.task))
    chosen = [each.key_or_group for each in overrides if each.is_sweep_override()]
    if any(key.split(".")[0] == "task" for key in (*chosen, *(sweeper.get("params") or {}))):
        sys.exit("The task cannot be chosen by a search: give it as it is, task=regression.")
    try:
        primary = build(config.task, "task", Task).primary
    except UserError:  # the jobs will say it
        return
    better = "maximize" if primary.higher_is_better else "minimize"
    given = getattr(sweeper.direction, "name", sweeper.direction)
    if given not in (better, None):
        sys.exit(
            f"hydra.sweeper.direction={given} is not possible: a job returns {primary.label} on "
            f"val, which gets better by {better}. Use hydra/sweeper=tune, which sets it."
        )
    if (sweeper.get("sampler") or {}).get("seed", 0) is None:
        log.warning("hydra.sweeper.sampler.seed is null: given again, this is another study.")
    with flag_override(config.hydra, ["readonly", "struct"], False):
        sweeper.direction = better


def _state(config: DictConfig) -> str:
    """Return the state of a configuration: finished, begun or new (also if it is invalid)."""
    try:
        job = identify(config)
        if config.force:
            return NEW
        if find_finished(job):
            return DONE
        return BEGUN if Checkpoint(Path(config.checkpoints), job.name, job.seen).begun() else NEW
    except UserError:  # the job itself will say it
        return NEW
