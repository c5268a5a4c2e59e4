"""Measure the harm of removed units, once for each array of sets; results are kept on disk."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from pruning_lab.atomic import replacing
from pruning_lab.attributions.players import Players
from pruning_lab.identity import identity
from pruning_lab.resume import undamaged
from pruning_lab.sources import digest_of_program
from pruning_lab.truth.recalibrated import Outcomes, RecalibratedRemovals


class Harm(NamedTuple):
    """Harm of sets of removed units to each sample, (samples, sets), beside the whole network.

    ``lost`` is 1 where a right answer becomes wrong, -1 where a wrong one becomes right, else 0:
    its mean is the accuracy lost. ``nats`` is the rise of the capped loss.
    """

    lost: np.ndarray
    nats: np.ndarray


class Removals:
    """The harm of removals on the first ``samples`` of a split.

    ``pictures`` are batches of training inputs for BatchNorm's statistics, which are made anew for
    each set and for the whole network alike; see ``RecalibratedRemovals``. ``classes`` is the
    number of classes, for the cap of the loss. What was measured is kept in ``folder``, which must
    belong to the model and the split.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: DataLoader,
        device: torch.device,
        samples: int,
        classes: int,
        pictures: Sequence[torch.Tensor] = (),
        folder: Path | None = None,
    ) -> None:
        self._metric = RecalibratedRemovals(
            model, batches, F.cross_entropy, device, "none", samples=samples
        )
        self._classes, self._pictures, self._folder = classes, pictures, folder
        self._names = {module: name for name, module in model.named_modules()}
        self._about = {
            "samples": samples,
            "pictures": [_digest(batch) for batch in pictures],
            "code": digest_of_program(RecalibratedRemovals),
        }

    def harm(self, players: Players, removed: Sequence[np.ndarray]) -> list[Harm]:
        """Measure each array of sets (sets, units), True where a unit is removed."""
        none = np.zeros((1, removed[0].shape[1]), dtype=bool)
        whole, *found = self.outcomes(players, [none, *removed])
        before = capped(whole.losses, self._classes)
        return [
            Harm(
                whole.right.astype(float) - outcome.right,
                capped(outcome.losses, self._classes) - before,
            )
            for outcome in found
        ]

    def outcomes(self, players: Players, removed: Sequence[np.ndarray]) -> list[Outcomes]:
        """Measure the sets of each array, or read what was measured before."""
        paths = [self._path(players, each) for each in removed]
        found = {path: self._kept(path) for path in paths}
        missing = {p: r for p, r in zip(paths, removed, strict=True) if found[p] is None}
        if missing:
            every = np.concatenate(list(missing.values()))
            measured = self._metric.outcomes(players, every, self._pictures)
            ends = np.cumsum([len(each) for each in missing.values()])[:-1]
            losses, right = (np.split(each, ends, axis=1) for each in measured)
            for path, *own in zip(missing, losses, right, strict=True):
                found[path] = Outcomes(*own)
                self._keep(path, Outcomes(*own))
        return [each for path in paths if (each := found[path]) is not None]

    def _path(self, players: Players, removed: np.ndarray) -> Path:
        about = {
            "players": {
                self._names[module]: None if row is None else row.tolist()
                for module, row in players.members.items()
            },
            "removed": hashlib.sha256(np.packbits(removed).tobytes()).hexdigest(),
            "shape": removed.shape,
        }
        return (self._folder or Path()) / f"outcomes-{identity(self._about | about)}.npz"

    def _kept(self, path: Path) -> Outcomes | None:
        if self._folder is None or not path.exists():
            return None
        with undamaged(path, self._folder), np.load(path, allow_pickle=False) as file:
            return Outcomes(file["losses"], file["right"])

    def _keep(self, path: Path, outcomes: Outcomes) -> None:
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.savez_compressed(file, **outcomes._asdict())


def capped(losses: np.ndarray, classes: int) -> np.ndarray:
    """Cap the loss of each sample at ln(classes), what a network has that knows nothing.

    A network that gives every class the same probability has the loss ln(classes) on every sample:
    2.3 nats for ten classes. A larger loss says that the network is sure of a wrong class. Removing
    units stretches the outputs, so that a few samples reach losses of 10 and more and outweigh all
    others, although the accuracy can fall no further and a rescaled output would undo it. The cap
    is put on each sample, before any mean, and on the whole network as well.
    """
    return np.minimum(losses, np.log(classes))


def at_shares(units: int, shares: Sequence[float]) -> np.ndarray:
    """Return the numbers of units that are these shares of a layer, each number once.

    They are rounded; one unit at least is removed, and one at least is left.
    """
    counts = np.rint(np.asarray(shares) * units).astype(int)
    return np.unique(np.clip(counts, 1, units - 1))


def _digest(batch: torch.Tensor) -> str:
    content = batch.detach().cpu().contiguous().numpy().tobytes()
    return hashlib.sha256(repr(tuple(batch.shape)).encode() + content).hexdigest()
