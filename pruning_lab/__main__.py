"""``python -m pruning_lab``: compose the configuration, check it, run the experiment."""

import math
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from pruning_lab import sweep
from pruning_lab.errors import UserError
from pruning_lab.identity import identify
from pruning_lab.record import Names
from pruning_lab.runner import Experiment, finished
from pruning_lab.setup import spread

# Torch asks for huge pages where the system lends them on request: the gradients of wide layers are
# new at every step, and their page faults took a quarter of it. Must stand before the first tensor.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


@hydra.main(version_base="1.3", config_path="pkg://pruning_lab.conf", config_name="config")
def main(config: DictConfig) -> float:
    """Run one experiment; its last test accuracy is the job's result."""
    hydra_config = HydraConfig.get()
    choices = hydra_config.runtime.choices
    names = Names(*(choices[group] for group in Names.__dataclass_fields__))
    output = Path(hydra_config.runtime.output_dir)
    if hydra_config.mode == RunMode.MULTIRUN:
        config.device = spread(config.device, hydra_config.job.num)
    try:
        if config.plan:
            print(Experiment(config, names, output).dry_run())
            return math.nan
        if not config.force and (done := finished(config, identify(config))) is not None:
            return done  # nothing is built for what is finished
        return Experiment(config, names, output).run()
    except UserError as error:
        raise CompactHydraException(str(error)) from None  # printed without traceback
    except OSError as error:  # of a disk or a network
        raise CompactHydraException(
            f"{error}. Run the same command again when that is mended: what was finished is kept."
        ) from error


def run() -> None:
    """The command: a run or a sweep, which Ctrl-C, or SIGTERM, ends cleanly."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        if "plan=true" in sys.argv:
            with tempfile.TemporaryDirectory() as nowhere:  # Hydra writes down what it composed
                sys.argv += [f"hydra.run.dir={nowhere}", f"hydra.sweep.dir={nowhere}"]
                main()
        else:
            main()
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on behind what is finished.", file=sys.stderr)
        sys.exit(130)
    finally:
        sweep.report()


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    run()
