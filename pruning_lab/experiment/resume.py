"""Keep finished steps, scores and epochs on disk, so that an interrupted run can resume.

Random streams belong to the step (the seed and its number), so that a finished step needs none;
within a training they are kept with its epochs.
"""

import json
import logging
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors import safe_open
from torch import nn
from torch.optim import Optimizer

from pruning_lab.attributions.estimation.scores import load_estimates, save_estimates
from pruning_lab.errors import UserError
from pruning_lab.experiment.network import Network
from pruning_lab.experiment.pruning_run import NullStepStore, Scored, StepResult
from pruning_lab.profiling.passes import ScoringCost
from pruning_lab.provenance.inputs_read import Seen
from pruning_lab.pruner.saved_model import save_tensors
from pruning_lab.records.step import STAGES, from_json
from pruning_lab.runtime import distributed
from pruning_lab.runtime.files import to_json, write_json
from pruning_lab.runtime.model_state import all_tensors, set_tensors
from pruning_lab.runtime.random_streams import set_states, states
from pruning_lab.training.fit import NullEpochStore

log = logging.getLogger(__name__)

MOST = 0.02
"""The share of a training's time that may go into writing its checkpoints."""

EPOCHS = "epochs.safetensors"

STREAM = "random|"
"""Prefix of the name of a random stream."""

Tensors = dict[str, torch.Tensor]


class Checkpoint:
    """The folder of one run under way, by the name of all that determines its result.

    A run resumes only if everything that it was ``seen`` to read is unchanged.
    """

    def __init__(self, folder: Path, name: str, seen: Seen) -> None:
        self.folder, self.seen = folder / name, seen
        self._started = self.folder / "run.json"

    def begun(self, forced: bool = False) -> str | None:
        """The token of the run that this belongs to; None where none is begun.

        With ``forced`` that of a run that was begun by force, too: others are not continued then.
        """
        if not self._started.exists():
            return None
        with undamaged(self._started, self.folder):
            found = json.loads(self._started.read_text())
            token, belongs = str(found["token"]), found["forced"] or not forced
            reason = self.seen.changed_since(found.get("seen"))
        if reason is not None:
            log.warning("The interrupted run starts again from its beginning: %s.", reason)
        return token if belongs and reason is None else None

    def begin(self, forced: bool, about: Mapping[str, Any]) -> str:
        """Forget everything and make a token; ``about`` says to people what is kept here."""
        self.discard()
        token = uuid.uuid4().hex
        write_json(self._started, {"token": token, "forced": forced, **about})
        self.note()
        return token

    def note(self) -> None:
        """Take down what was read by now."""
        found = json.loads(self._started.read_text())
        write_json(self._started, found | {"seen": self.seen.by_now()})

    def discard(self) -> None:
        """Remove the folder at once: an interruption leaves no part of it in place."""
        gone = self.folder.with_suffix(".gone")
        shutil.rmtree(gone, ignore_errors=True)
        with suppress(FileNotFoundError):
            self.folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def locked(self) -> AbstractContextManager[None]:
        """Hold the folder inside a block."""
        path = self.folder.with_suffix(".lock")
        waiting = f"Another process runs this configuration ({self.folder}): waiting"
        return locked(path, f"checkpoints={self.folder.parent}", waiting)


class DiskStepStore(NullStepStore):
    """The finished steps of a track in one file, the scores of the step under way, its epochs."""

    def __init__(self, folder: Path, track: str) -> None:
        self._folder, self._track = folder, track
        self._path = folder / f"{track}.safetensors"

    def restore(self, network: Network, optimizer: Optimizer) -> list[StepResult]:
        """Remove again what was removed, then put the tensors back."""
        found = distributed.agreed(lambda: _read(self._path, self._folder))
        if found is None:
            return []
        with undamaged(self._path, self._folder):
            tensors, about = found
            results = [_result(number, each, tensors) for number, each in enumerate(about["steps"])]
            for result in results[1:]:
                network.pruner.prune_groups(result.plan)
            _restore(tensors, network.model, optimizer)
        return results

    def keep(self, results: Sequence[StepResult], network: Network, optimizer: Optimizer) -> None:
        """Write all in one file, so that no two of them can disagree."""
        if not distributed.leads():
            return
        steps = [{"plan": each.plan, "record": asdict(each.record)} for each in results]
        tensors = _state(network.model, optimizer) | _samples(results)
        _write(self._path, tensors, {"steps": steps})
        self._of(len(results) - 1, EPOCHS).unlink(missing_ok=True)

    def scores(self, number: int, score: Callable[[], Scored]) -> Scored:
        return kept_scores(self._of(number, "scores.npz"), self._folder, {}, score)

    def epochs(self, number: int) -> NullEpochStore:
        return DiskEpochStore(self._of(number, EPOCHS))

    def _of(self, number: int, what: str) -> Path:
        return self._folder / f"{self._track}-step-{number:03d}-{what}"


class DiskEpochStore(NullEpochStore):
    """The last finished epoch of a training; written as seldom as ``MOST`` of its time allows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds = 0.0
        self._started = self._written = time.perf_counter()
        self._pause = 0.0

    def restore(self, model: nn.Module, optimizer: Optimizer, order: torch.Generator) -> int:
        self._started = self._written = time.perf_counter()
        found = distributed.agreed(lambda: _read(self.path, self.path.parent))
        if found is None:
            return 0
        with undamaged(self.path, self.path.parent):
            tensors, about = found
            _restore(tensors, model, optimizer)
            order.set_state(tensors["order|order"])
            streams = {k.removeprefix(STREAM): v for k, v in tensors.items() if STREAM in k}
            set_states(streams, _device(model))
        self.seconds = about["seconds"]
        return int(about["epochs"])

    def keep(
        self, done: int, model: nn.Module, optimizer: Optimizer, order: torch.Generator
    ) -> None:
        begun = time.perf_counter()
        if begun - self._written < self._pause or not distributed.leads():
            return
        tensors = _state(model, optimizer)
        tensors["order|order"] = order.get_state()
        tensors |= {STREAM + key: state for key, state in states(_device(model)).items()}
        spent = self.seconds + begun - self._started
        _write(self.path, tensors, {"epochs": done, "seconds": spent})
        self._written = time.perf_counter()
        self._pause = (self._written - begun) / MOST


def kept_scores(
    path: Path,
    folder: Path,
    settings: Mapping[str, Any],
    score: Callable[[], Scored],
    seen: Seen | None = None,
) -> Scored:
    """Scores that are made once: read from ``path``, or made and written there with their cost.

    With ``seen`` they are made again where what they were computed from has changed.
    """
    about = path.with_suffix(".json")

    def usable() -> bool:
        if seen is None or not path.exists():
            return path.exists()
        with undamaged(about, folder):
            return seen.changed_since(json.loads(about.read_text()).get("seen")) is None

    made = None if distributed.agreed(usable) else score()

    def kept() -> Scored:
        if made is not None:
            read = seen.by_now() if seen else None
            write_json(about, {"settings": settings, "cost": vars(made[1]), "seen": read})
            save_estimates({"scores": made[0]}, path)
        with undamaged(path, folder):
            (found,) = load_estimates(path).values()
            return found, ScoringCost(**json.loads(about.read_text())["cost"])

    return distributed.agreed(kept)


@contextmanager
def locked(path: Path, setting: str, waiting: str) -> Iterator[None]:
    """Hold the lock file ``path``; log ``waiting`` if another process holds it.

    Raises UserError, which names the ``setting``, if it cannot be written.
    """
    lock = FileLock(path)

    def acquire() -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(blocking=False)
        except Timeout:
            log.info(waiting)
            lock.acquire()
        except OSError as error:
            raise UserError(f"{setting} cannot be written: {error}. Give another.") from error

    distributed.agreed(acquire)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def undamaged(path: Path, folder: Path) -> Iterator[None]:
    """Turn any error while ``path`` is read into a UserError that calls it damaged."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a damaged file makes its reader raise nearly anything
        if isinstance(error, OSError) and error.errno:  # of the disk, not of what is on it
            raise
        raise UserError(
            f"{path} is damaged ({error}). Delete {folder} and run again: it holds only what this "
            "program computes again."
        ) from error


def _samples(results: Sequence[StepResult]) -> Tensors:
    """The test results of all finished steps as named tensors."""
    return {
        f"test|{number}|{stage}|{name}": torch.from_numpy(value)
        for number, result in enumerate(results)
        for stage, samples in result.test.items()
        for name, value in samples.items()
    }


def _result(number: int, about: Mapping[str, Any], tensors: Tensors) -> StepResult:
    """A finished step as it was kept."""
    test: dict[str, dict[str, np.ndarray]] = {stage: {} for stage in STAGES}  # in their order
    for key, value in tensors.items():
        kind, at, *rest = key.split("|")
        if kind == "test" and int(at) == number:
            stage, name = rest
            test[stage][name] = value.numpy()
    plan = {name: np.array(units, dtype=np.int64) for name, units in about["plan"].items()}
    measured = {stage: samples for stage, samples in test.items() if samples}
    return StepResult(plan, from_json(about["record"]), measured)


def _state(model: nn.Module, optimizer: Optimizer) -> Tensors:
    """The tensors of a model and of its optimizer."""
    tensors = {f"model|{key}": value for key, value in all_tensors(model).items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if value is not None:
                tensors[f"optimizer|{key}|{name}"] = value
    return tensors


@torch.no_grad()
def _restore(tensors: Tensors, model: nn.Module, optimizer: Optimizer) -> None:
    """The same back, into memory laid out as it was."""
    set_tensors(model, {key: tensors[f"model|{key}"] for key in all_tensors(model)})
    parameters = dict(model.named_parameters())
    for whole, value in tensors.items():
        kind, key, *name = whole.split("|", 2)
        if kind == "optimizer":
            parameter = parameters[name[0]]
            optimizer.state[parameter][key] = torch.empty_like(parameter).copy_(value)


def _write(path: Path, tensors: Tensors, about: Mapping[str, Any]) -> None:
    save_tensors(tensors, path, {"about": to_json(about)})


def _read(path: Path, folder: Path) -> tuple[Tensors, dict[str, Any]] | None:
    """Read what ``_write`` wrote; None if there is no file."""
    if not path.exists():
        return None
    with undamaged(path, folder), safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["about"])
        return {key: file.get_tensor(key) for key in file.keys()}, about  # noqa: SIM118


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
