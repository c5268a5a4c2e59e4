"""The trained starting point that every criterion shares, under a hash of what determines it."""

import json
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from itertools import count
from pathlib import Path
from typing import Any

from torch import nn

from pruning_lab.experiment.fingerprint import identity
from pruning_lab.experiment.pruning_run import Scored
from pruning_lab.experiment.resume import DiskEpochStore, kept_scores, locked, undamaged
from pruning_lab.provenance.environment import working
from pruning_lab.provenance.inputs_read import Seen
from pruning_lab.pruner.saved_model import load_state, save_state
from pruning_lab.runtime import distributed
from pruning_lab.runtime.files import write_json
from pruning_lab.training.fit import NullEpochStore

log = logging.getLogger(__name__)

LONGEST_NAME = 50
"""Characters of a criterion's name that are used in a file name."""

MODEL, SEEN = "model.safetensors", "seen.json"


class Baseline:
    """The folder of one baseline. Parallel jobs that want the same one wait for the first.

    What is kept there is used only while all that it was computed from is as it was: ``begun``
    for the network and its training, ``seen`` for scores. Another state has a folder of its own.
    """

    def __init__(
        self, folder: Path, determinants: Mapping[str, Any], begun: Seen, seen: Seen
    ) -> None:
        self.determinants, self.begun, self.seen = determinants, begun, seen
        self.folder = self._place(folder / identity(determinants))
        self.name = self.folder.name

    def obtain(self, model: nn.Module, train: Callable[[nn.Module, NullEpochStore], None]) -> bool:
        """Give ``model`` the trained weights; True when ``train`` had to make them first.

        An interrupted training resumes after its last finished epoch.
        """
        path, epochs = self.folder / MODEL, DiskEpochStore(self.folder / "training.safetensors")
        with self._locked(""):
            if new := not distributed.agreed(path.exists):
                distributed.agreed(self._begin)
                with working() as read:
                    train(model, epochs)
                distributed.agreed(lambda: self._keep(model, path, read))
            else:
                with undamaged(path, self.folder):
                    load_state(model, path)
            if distributed.leads():
                epochs.path.unlink(missing_ok=True)
            return new

    def _begin(self) -> None:
        write_json(self.folder / "determinants.json", self.determinants)
        write_json(self.folder / SEEN, self.begun.by_now())

    def _keep(self, model: nn.Module, path: Path, read: Mapping[str, str]) -> None:
        """Write the model down, and before it what the training read."""
        write_json(self.folder / SEEN, self.begun.also(read).by_now())
        save_state(model, path)

    def _place(self, first: Path) -> Path:
        """The folder of what has not changed: the first of this name, or one with a number."""
        for number in count():
            place = first.with_name(f"{first.name}-{number}") if number else first
            kept = place / SEEN
            if not kept.exists():
                return place
            with undamaged(kept, place):
                reason = self.begun.changed_since(json.loads(kept.read_text()))
            if reason is None:
                return place
            log.warning("Baseline %s is not this one: %s.", place.name, reason)
        raise AssertionError

    def scores(
        self, criterion: str, settings: Mapping[str, Any], score: Callable[[], Scored]
    ) -> Scored:
        """The criterion's scores by layer on this baseline, and what they took.

        Computed once; ``settings`` is what they depend on besides the baseline.
        """
        path = self.folder / f"{criterion[:LONGEST_NAME]}-{identity([criterion, settings])}.npz"
        with self._locked(path.stem):
            return kept_scores(path, self.folder, settings, score, self.seen)

    def _locked(self, what: str) -> AbstractContextManager[None]:
        """Hold the model (``""``), or the scores of this name."""
        path = self.folder / f".{what}.lock"
        waiting = f"Waiting for another process that makes the same ({path}) ..."
        return locked(path, f"baseline.folder={self.folder.parent}", waiting)
