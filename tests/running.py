"""Experiments in miniature, as the command line composes them."""

import atexit
import multiprocessing
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from unittest.mock import patch

from hydra import compose, initialize_config_module
from omegaconf import flag_override
from torch import nn

from pruning_lab import tracking
from pruning_lab.config.sections import Names
from pruning_lab.experiment import recorder, runner
from pruning_lab.experiment.setup import Setup, set_up
from pruning_lab.tracking.store import MlflowClient

TINY = [
    "model=mlp",
    "model.hidden=[16,12]",
    "dataset=synthetic",
    "baseline.training.epochs=5",
    "baseline.training.batch_size=16",
    "threads=1",
]
TWO_STEPS = ["schedule.steps=2", "schedule.target=0.5", "finetune.epochs=1",
             "finetune.steps=null"]  # fmt: skip


class Experiment:
    """An experiment that is set up: its parts, and after ``run`` its record."""

    def __init__(self, setup: Setup, output: Path) -> None:
        self.setup, self.output = setup, output
        self.record: recorder.RunRecorder | None = None

    def __getattr__(self, name: str) -> object:
        return getattr(self.setup, name)

    @property
    def model(self) -> nn.Module:
        return self.setup.network.model

    @property
    def client(self) -> MlflowClient:
        return tracking.connect(self.setup.settings.tracking.uri)

    def run(self) -> float:
        made = recorder.MlflowRecorder

        def watched(*arguments: object) -> recorder.RunRecorder:
            self.record = made(*arguments)
            return self.record

        with patch.object(recorder, "MlflowRecorder", watched):
            return runner.run(self.setup, self.output)


def two_steps(folder: Path, *overrides: str) -> Experiment:
    """To half the FLOPs in two steps, with an epoch of fine-tuning after each."""
    return experiment(folder, *TWO_STEPS, *overrides)


def experiment(folder: Path, *overrides: str, base: Sequence[str] = TINY) -> Experiment:
    """The experiment of ``python -m pruning_lab OVERRIDES``, tiny, with its files in ``folder``."""
    places = [
        f"baseline.folder={folder / 'baselines'}",
        f"checkpoints={folder / 'checkpoints'}",
        f"tracking.uri=sqlite:///{folder / 'mlflow.db'}",
    ]
    if not (folder / "mlflow.db").exists():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(empty_store(), folder / "mlflow.db")
    overrides = [*base, *places, *overrides]
    with initialize_config_module("pruning_lab.conf", version_base="1.3"):
        config = compose("config", overrides, return_hydra_config=True)
    choices = config.hydra.runtime.choices
    with flag_override(config, ["readonly", "struct"], False):
        del config["hydra"]
    names = Names(*(choices[group] for group in Names.__dataclass_fields__))
    return Experiment(set_up(config, names), folder / "outputs")


@cache
def empty_store() -> Path:
    """A tracking database without runs: making one takes longer than a tiny experiment."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    tracking.connect(f"sqlite:///{folder / 'mlflow.db'}")
    return folder / "mlflow.db"


def in_processes(count: int, work: Callable[..., object], *arguments: object) -> list[int | None]:
    """The same work in so many processes at once; their exit codes."""
    context = multiprocessing.get_context("fork")
    jobs = [context.Process(target=work, args=arguments) for _ in range(count)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    return [job.exitcode for job in jobs]
