"""What the loss rises by when units go, measured once for each set of sets."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from pruning_lab.atomic import replacing
from pruning_lab.attributions.players import Players
from pruning_lab.attributions.removals import RemovalMetric
from pruning_lab.errors import check_count
from pruning_lab.identity import identity
from pruning_lab.resume import undamaged
from pruning_lab.sources import digest_of_program


class Removals:
    """The rises of the loss on the first ``samples`` of a split.

    Units are put to 0 behind BatchNorm and non-linearity.

    What was measured is kept in ``folder``, which must belong to the model and the split.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: DataLoader,
        device: torch.device,
        samples: int,
        folder: Path | None = None,
    ) -> None:
        self._given = (model, batches, F.cross_entropy, device, "none", samples)
        self._names = {module: name for name, module in model.named_modules()}
        self._folder = folder

    def rises(self, players: Players, removed: Sequence[np.ndarray]) -> list[np.ndarray]:
        """For each array of sets (sets, players), True where one is gone, (samples, sets)."""
        paths = [self._path(players, each) for each in removed]
        found = {path: self._kept(path) for path in paths}
        missing = {p: r for p, r in zip(paths, removed, strict=True) if found[p] is None}
        if missing:
            every = np.concatenate(list(missing.values()))
            metric = RemovalMetric(*self._given[:5], samples=self._given[5], removed=every)
            measured = metric.estimate([players], True)[0].scores
            ends = np.cumsum([len(each) for each in missing.values()])[:-1]
            for path, rises in zip(missing, np.split(measured, ends, axis=1), strict=True):
                found[path] = rises
                self._keep(path, rises)
        return [each for path in paths if (each := found[path]) is not None]

    def _path(self, players: Players, removed: np.ndarray) -> Path:
        about = {
            "players": {
                self._names[module]: None if row is None else row.tolist()
                for module, row in players.members.items()
            },
            "removed": hashlib.sha256(np.packbits(removed).tobytes()).hexdigest(),
            "shape": removed.shape,
            "samples": self._given[5],
            "code": digest_of_program(RemovalMetric),
        }
        return (self._folder or Path()) / f"rises-{identity(about)}.npy"

    def _kept(self, path: Path) -> np.ndarray | None:
        if self._folder is None or not path.exists():
            return None
        with undamaged(path, self._folder):
            return np.asarray(np.load(path, allow_pickle=False))

    def _keep(self, path: Path, rises: np.ndarray) -> None:
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.save(file, rises, allow_pickle=False)


def grid(units: int, points: int | None) -> np.ndarray:
    """Numbers of units removed: all from 1 on, or some ``points`` of them, evenly; all at last."""
    check_count("points", points if points is not None else units)
    every = np.arange(1, units + 1)
    if points is None or points >= units:
        return every
    return np.unique(np.rint(np.linspace(0, units, points + 1)).astype(int))[1:]


def mean_rise(rises: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The mean over t = 1 ... units of the rise after t removals, by the trapezoid rule.

    ``rises`` (..., counts) are those after ``counts`` removals, the last of them all units; exact
    where no count is left out.
    """
    area = np.trapezoid(np.insert(rises, 0, 0, axis=-1), np.insert(counts, 0, 0), axis=-1)
    return (area + rises[..., -1] / 2) / counts[-1]
