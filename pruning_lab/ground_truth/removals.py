"""Measure the harm of removing sets of units; the results are cached on disk."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset, Subset

from pruning_lab.attributions.unit_groups import UnitGroups
from pruning_lab.errors import UserError
from pruning_lab.experiment.fingerprint import identity
from pruning_lab.experiment.resume import undamaged
from pruning_lab.ground_truth.recalibrated import Outcomes, RecalibratedRemovals
from pruning_lab.provenance.source_code import digest_of_program
from pruning_lab.runtime.files import replacing
from pruning_lab.runtime.inputs import Inputs, tensors
from pruning_lab.tasks.task import Task
from pruning_lab.training.evaluation import evaluate


class Harm(NamedTuple):
    """Harm of removed sets of units to each sample, (samples, sets), beyond the unpruned network.

    ``lost`` is 1 where a sample that was right becomes wrong, -1 where a wrong one becomes right,
    else 0; its mean is what the primary measure loses. ``nats`` is the rise of the capped loss.
    """

    lost: np.ndarray
    nats: np.ndarray


class Removals:
    """Measure the harm of removals on the first ``samples`` of a split.

    ``pictures`` are batches of training inputs for BatchNorm's statistics, which are recomputed for
    each set and for the unpruned network; see ``RecalibratedRemovals``. The loss of each sample is
    capped at ``cap``. Results are cached in ``folder``, which must belong to the model and the
    split.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        device: torch.device,
        samples: int,
        task: Task,
        cap: float,
        pictures: Sequence[Inputs],
        folder: Path,
    ) -> None:
        self._metric = RecalibratedRemovals(model, batches, task, device, samples=samples)
        self._cap, self._pictures, self._folder = cap, pictures, folder
        self._names = {module: name for name, module in model.named_modules()}
        self._about = {
            "samples": samples,
            "pictures": [_digest(batch) for batch in pictures],
            "code": digest_of_program(RecalibratedRemovals),
        }

    def harm(self, unit_groups: UnitGroups, removed: Sequence[np.ndarray]) -> list[Harm]:
        """Measure each array of sets (sets, units), True where a unit is removed."""
        none = np.zeros((1, removed[0].shape[1]), dtype=bool)
        unpruned, *outcomes = self.outcomes(unit_groups, [none, *removed])
        before = capped(unpruned.losses, self._cap)
        return [
            Harm(
                unpruned.right.astype(float) - outcome.right,
                capped(outcome.losses, self._cap) - before,
            )
            for outcome in outcomes
        ]

    def outcomes(self, unit_groups: UnitGroups, removed: Sequence[np.ndarray]) -> list[Outcomes]:
        """Measure the sets of each array that are not in the cache; return all of them."""
        paths = [self._path(unit_groups, sets) for sets in removed]
        missing = {p: sets for p, sets in zip(paths, removed, strict=True) if not p.exists()}
        if missing:
            all_sets = np.concatenate(list(missing.values()))
            measured = self._metric.outcomes(unit_groups, all_sets, self._pictures)
            ends = np.cumsum([len(sets) for sets in missing.values()])[:-1]
            losses, right = (np.split(values, ends, axis=1) for values in measured)
            for path, *arrays in zip(missing, losses, right, strict=True):
                with replacing(path) as temporary, temporary.open("wb") as file:
                    np.savez_compressed(file, **Outcomes(*arrays)._asdict())
        return [self._read(path) for path in paths]

    def _path(self, unit_groups: UnitGroups, removed: np.ndarray) -> Path:
        about = {
            "players": {
                self._names[module]: None if row is None else row.tolist()
                for module, row in unit_groups.members.items()
            },
            "removed": hashlib.sha256(np.packbits(removed).tobytes()).hexdigest(),
            "shape": removed.shape,
        }
        return self._folder / f"outcomes-{identity(self._about | about)}.npz"

    def _read(self, path: Path) -> Outcomes:
        with undamaged(path, self._folder), np.load(path, allow_pickle=False) as file:
            return Outcomes(file["losses"], file["right"])


def check_task(task: Task, model: nn.Module, dataset: Dataset) -> None:
    """Raise UserError unless the primary measure is the share of samples that are ``correct``.

    Harm is counted sample by sample, which an F1 score or the root of a mean does not allow. Some
    samples of ``dataset`` go through ``model``, to see what the task observes of them.
    """
    few = Subset(dataset, range(min(64, len(dataset))))  # type: ignore[arg-type]
    samples, primary = evaluate(model, few, task).samples, task.primary
    correct = samples.get("correct")
    if correct is not None and correct.ndim == 1:
        # a measure that only happens to be equal for these samples does not follow such changes
        changed = [np.arange(len(correct)) < right for right in (0, 1, 2)]
        values = [task.measure({**samples, "correct": right})[primary.name] for right in changed]
        if np.allclose(values, [right.mean() for right in changed]):
            return
    raise UserError(
        f"task={type(task).__name__} is not possible for pruning_lab.ground_truth: it counts the "
        f"samples that become wrong, but {primary.label}, the primary measure of this task, is not "
        "the share of samples that are right. Choose another task and data set."
    )


def capped(losses: np.ndarray, cap: float) -> np.ndarray:
    """Cap the loss of each sample at that of a network that knows nothing of its input.

    A network that gives every class the same probability has the loss ln(classes) on every sample:
    2.3 nats for ten classes. A larger loss means that the network is confident in a wrong class.
    Removing units stretches the outputs, so that a few samples reach losses of 10 and more and
    outweigh all others, although no more than all answers can be wrong and rescaling the output
    would undo it. The cap applies to each sample, before any mean, and to the unpruned network too.
    """
    return np.minimum(losses, cap)


def at_shares(units: int, shares: Sequence[float]) -> np.ndarray:
    """Return the numbers of units that are ``shares`` of a layer, ascending, without duplicates.

    They are rounded, so that at least one unit is removed and at least one remains.
    """
    counts = np.rint(np.asarray(shares) * units).astype(int)
    return np.unique(np.clip(counts, 1, units - 1))


def _digest(inputs: Inputs) -> str:
    digest = hashlib.sha256()
    for tensor in tensors(inputs):
        digest.update(repr(tuple(tensor.shape)).encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
