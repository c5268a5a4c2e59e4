"""The trained starting point that every criterion shares, under a hash of what determines it."""

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import nn

from pruning_lab import ranks
from pruning_lab.atomic import write_json
from pruning_lab.checkpoint import load_state, save_state
from pruning_lab.errors import UserError
from pruning_lab.identity import identity
from pruning_lab.observed import Seen
from pruning_lab.resume import KeptEpochs, kept_scores, undamaged
from pruning_lab.track import Scored
from pruning_lab.training import Epochs

log = logging.getLogger(__name__)

MODEL, SEEN = "model.safetensors", "seen.json"


class Baseline:
    """The folder of one baseline. Parallel jobs that want the same one wait for the first.

    What is kept there is used only while all that it was computed from is as it was: ``seen``.
    """

    def __init__(self, folder: Path, determinants: Mapping[str, Any], seen: Seen) -> None:
        self.name = identity(determinants)
        self.folder = folder / self.name
        self.determinants, self.seen = determinants, seen

    def obtain(self, model: nn.Module, train: Callable[[nn.Module, Epochs], None]) -> bool:
        """Give ``model`` the trained weights; True when ``train`` had to make them first.

        A training that was cut off goes on behind its last epoch.
        """
        path, epochs = self.folder / MODEL, KeptEpochs(self.folder / "training.safetensors")
        with self._locked(""):
            ranks.agreed(self._forget_what_changed)
            if new := not ranks.agreed(path.exists):
                ranks.agreed(self._begin)
                train(model, epochs)
                ranks.agreed(self._begin)  # with what was read meanwhile
                ranks.agreed(lambda: save_state(model, path))
            else:
                with undamaged(path, self.folder):
                    load_state(model, path)
            if ranks.leads():
                epochs.path.unlink(missing_ok=True)
            return new

    def _begin(self) -> None:
        write_json(self.folder / "determinants.json", self.determinants)
        write_json(self.folder / SEEN, self.seen.by_now())

    def _forget_what_changed(self) -> None:
        """Remove a baseline, and scores on it, of which something has changed since."""
        kept = self.folder / SEEN
        if not kept.exists() and not (self.folder / MODEL).exists():
            return
        with undamaged(kept, self.folder):
            reason = self.seen.changed_since(json.loads(kept.read_text()))
        if reason is not None:
            log.warning("Baseline %s is made anew: %s.", self.name, reason)
            for path in [each for each in self.folder.iterdir() if not each.name.startswith(".")]:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def scores(
        self, criterion: str, settings: Mapping[str, Any], score: Callable[[], Scored]
    ) -> Scored:
        """The criterion's scores by layer on this baseline, and what they took.

        Computed once; ``settings`` is what they depend on besides the baseline.
        """
        path = self.folder / f"{criterion}-{identity(settings)}.npz"
        with self._locked(path.stem):
            return kept_scores(path, self.folder, settings, score, self.seen)

    @contextmanager
    def _locked(self, what: str) -> Iterator[None]:
        """Hold the model (``""``), or the scores of this name."""
        lock = FileLock(self.folder / f".{what}.lock")
        ranks.agreed(lambda: self._acquire(lock))
        try:
            yield
        finally:
            lock.release()

    def _acquire(self, lock: FileLock) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"baseline.folder={self.folder.parent} cannot be written: {error}. Give another."
            ) from error
        try:
            lock.acquire(blocking=False)
        except Timeout:
            log.info("Waiting for another process that makes the same (%s) ...", lock.lock_file)
            lock.acquire()
