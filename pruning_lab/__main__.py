"""``python -m pruning_lab``: compose the configuration, check it, run the experiment."""

import logging
import math
import os
import re
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, HydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from pruning_lab import ranks, sweep
from pruning_lab.composition import check_composed, where_given
from pruning_lab.errors import UserError
from pruning_lab.identity import identify
from pruning_lab.record import Names
from pruning_lab.runner import Experiment, finished
from pruning_lab.setup import spread

# Torch asks for huge pages where the system lends them on request: the gradients of wide layers are
# new at every step, and their page faults took a quarter of it. Must stand before the first tensor.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

log = logging.getLogger("pruning_lab")

NO_SWEEP = (
    "-m is not possible under torchrun: all its processes work on one run. Start one torchrun "
    "after the other."
)

AGAIN = "Run the same command again when that is mended: what was finished is kept."

INTERRUPTED = "\nInterrupted. Run the same command again to resume after the last completed step."


@hydra.main(version_base="1.3", config_path="pkg://pruning_lab.conf", config_name="config")
def main(config: DictConfig) -> float:
    """Run one experiment; its last validation accuracy is the job's result."""
    hydra_config = HydraConfig.get()
    try:
        with where_given(hydra_config):
            names = Names(*check_composed(config, hydra_config, Names.__dataclass_fields__))
            if hydra_config.mode == RunMode.MULTIRUN:
                config.device = spread(config.device, hydra_config.job.num)
            output = Path(hydra_config.runtime.output_dir)
            return _job(config, names, output, hydra_config.overrides.task)
    except UserError as error:
        text = str(error) if ranks.says(str(error)) else f"Rank {ranks.number()} ends likewise."
        raise CompactHydraException(text) from None  # printed without traceback
    except OSError as error:  # of a disk or a network
        raise CompactHydraException(f"{error}. {AGAIN}") from error


def _job(config: DictConfig, names: Names, output: Path, overrides: Sequence[str]) -> float:
    """Say what a run would do, or do what is not done yet."""
    if config.plan:
        text = Experiment(config, names, output).dry_run()
        if ranks.leads():
            print(text)
        if not config.force:
            finished(config, identify(config))  # which says so, where it is
        return math.nan
    log.info("%s on %s, pruned by %s", names.model, names.dataset, names.metric)
    if not config.force and (done := finished(config, identify(config))) is not None:
        return done  # the experiment is not set up again
    return Experiment(config, names, output, overrides).run()


def run() -> None:
    """The command: a run or a sweep, which Ctrl-C, or SIGTERM, ends cleanly."""
    if not sys.flags.safe_path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as ``python -m`` does, for `pruning-lab`
    signal.signal(signal.SIGTERM, _interrupt)
    with ranks.joined():
        try:
            _run()
        except KeyboardInterrupt:
            if ranks.leads():
                print(INTERRUPTED, file=sys.stderr)
            sys.exit(130)
        except SystemExit as ended:
            if ranks.leads() and (error := _disk_error(ended)) is not None:
                print(f"\n{error}. {AGAIN}", file=sys.stderr)
            raise
        finally:
            if ranks.leads():
                sweep.report()


def _run() -> None:
    """Hydra's part; it leaves files only where the command does."""
    if ranks.count() > 1 and {"-m", "--multirun"} & {*sys.argv}:
        sys.exit(NO_SWEEP if ranks.says(NO_SWEEP) else 1)
    if not ranks.leads():
        logging.disable(logging.INFO)
    elif not any(each.lower().lstrip("+") == "plan=true" for each in sys.argv):
        main()
        return
    with tempfile.TemporaryDirectory() as nowhere:  # Hydra writes down what it composed
        overrides = [at for at, each in enumerate(sys.argv) if re.match(r"[^-]\S*=", each) and at]
        after = max(overrides, default=len(sys.argv) - 1) + 1  # flags may follow them
        sys.argv[after:after] = [f"hydra.run.dir={nowhere}", f"hydra.sweep.dir={nowhere}"]
        main()


def _disk_error(ended: SystemExit) -> OSError | None:
    """What Hydra could not write of its own, if that ended it: its log, its configuration."""
    error = ended.__context__
    if isinstance(error, ValueError):  # logging's, of a handler that cannot open its file
        error = error.__cause__
    if isinstance(error, HydraException):  # some are OSErrors, of the configuration
        return None
    return error if isinstance(error, OSError) else None


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    run()
