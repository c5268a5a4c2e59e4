"""``python -m pruning_lab``: compose the configuration, check it, run the experiment.

Hydra composes before torch and MLflow are imported, so that a wrong name is told at once.
"""

import logging
import math
import os
import re
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, HydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from pruning_lab.config.composition import check_composed, where_given
from pruning_lab.config.sections import Names
from pruning_lab.errors import UserError

# Torch asks for huge pages where the system lends them on request: the gradients of wide layers are
# new at every step, and their page faults took a quarter of it. Must stand before the first tensor.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

log = logging.getLogger("pruning_lab")

DRY = {"dry_run=true", "plan=true"}

NO_SWEEP = (
    "-m is not possible under torchrun: all its processes work on one run. Start one torchrun "
    "after the other."
)

AGAIN = "Run the same command again when that is mended: what was finished is kept."

INTERRUPTED = "\nInterrupted. Run the same command again to resume after the last completed step."


@hydra.main(version_base="1.3", config_path="pkg://pruning_lab.conf", config_name="config")
def main(config: DictConfig) -> float:
    """Run one experiment; the primary measure on ``val`` at its end is the job's result."""
    hydra_config = HydraConfig.get()
    try:
        with where_given(hydra_config):
            names = check_composed(config, hydra_config)
            if hydra_config.mode == RunMode.MULTIRUN:
                from pruning_lab.runtime.device import spread

                config.device = spread(config.device, hydra_config.job.num)
            output = Path(hydra_config.runtime.output_dir)
            result = _job(config, names, output, hydra_config.overrides.task)
            if math.isnan(result) and hydra_config.mode == RunMode.MULTIRUN and not config.dry_run:
                raise UserError("The primary measure on val is not a number: no result of a job.")
            return result
    except UserError as error:
        raise CompactHydraException(_once(str(error))) from None  # printed without traceback
    except OSError as error:  # of a disk or a network
        raise CompactHydraException(f"{error}. {AGAIN}") from error


def _job(config: DictConfig, names: Names, output: Path, overrides: Sequence[str]) -> float:
    """Say what a run would do, or do what is not done yet."""
    from pruning_lab.dry_run.report import dry_run
    from pruning_lab.experiment import runner
    from pruning_lab.experiment.fingerprint import identify
    from pruning_lab.experiment.setup import set_up

    if config.dry_run:
        setup = set_up(config, names)
        text = dry_run(setup)
        if _leads():
            print(text)
        if not config.force:
            runner.finished(setup)  # which says so, where it is
        return math.nan
    log.info("%s on %s, pruned by %s", names.model, names.dataset, names.metric)
    if not config.force and (done := runner.finished(identify(config))) is not None:
        return done  # the experiment is not set up again
    return runner.run(set_up(config, names), output, overrides)


def run() -> None:
    """The command: a run or a sweep, which Ctrl-C, or SIGTERM, ends cleanly."""
    if not sys.flags.safe_path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as ``python -m`` does, for `pruning-lab`
    signal.signal(signal.SIGTERM, _interrupt)
    processes = _processes()
    with nullcontext() if processes is None else processes.joined():
        try:
            _run()
        except KeyboardInterrupt:
            if _leads():
                print(INTERRUPTED, file=sys.stderr)
            sys.exit(130)
        except SystemExit as ended:
            if _leads() and (error := _disk_error(ended)) is not None:
                print(f"\n{error}. {AGAIN}", file=sys.stderr)
            raise
        finally:
            sweep = sys.modules.get("pruning_lab.experiment.sweep")  # where there was one
            if sweep is not None and _leads():
                sweep.report()


def _run() -> None:
    """Hydra's part; it leaves files only where the command does."""
    if _processes() is not None and {"-m", "--multirun"} & {*sys.argv}:
        sys.exit(NO_SWEEP if _once(NO_SWEEP) == NO_SWEEP else 1)
    if not _leads():
        logging.disable(logging.INFO)
    elif not {each.lower().lstrip("+") for each in sys.argv} & DRY or "dry_run=false" in sys.argv:
        main()
        return
    with tempfile.TemporaryDirectory() as nowhere:  # Hydra writes down what it composed
        overrides = [at for at, each in enumerate(sys.argv) if re.match(r"[^-]\S*=", each) and at]
        after = max(overrides, default=len(sys.argv) - 1) + 1  # flags may follow them
        sys.argv[after:after] = [f"hydra.run.dir={nowhere}", f"hydra.sweep.dir={nowhere}"]
        main()


def _processes() -> ModuleType | None:
    """Return ``runtime.distributed`` under torchrun; None otherwise, so torch is not imported."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    from pruning_lab.runtime import distributed

    return distributed


def _leads() -> bool:
    """Return True for the process that decides and writes: the only one, or rank 0."""
    processes = _processes()
    return processes is None or bool(processes.leads())


def _once(message: str) -> str:
    """Return a message that all processes raise, or a short one where another has raised it."""
    processes = _processes()
    if processes is None or processes.says(message):
        return message
    return f"Rank {processes.number()} ends likewise."


def _disk_error(ended: SystemExit) -> OSError | None:
    """Return the error of a file that Hydra could not write (its log, its configuration)."""
    error = ended.__context__
    if isinstance(error, ValueError):  # logging's, of a handler that cannot open its file
        error = error.__cause__
    if isinstance(error, HydraException):  # some are OSErrors, of the configuration
        return None
    return error if isinstance(error, OSError) else None


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    run()
