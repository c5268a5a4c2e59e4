"""Correctness and loss of every test picture at every step of a run, in one file.

Statistics over pictures need them: accuracies alone do not tell which pictures two networks get
wrong. The file is an npz: ``measured`` (S,) names what was measured, ``main/3/after`` for example
(track, step, stage), ``correct`` (S, ceil(N / 8)) holds the bits of ``numpy.packbits``, ``loss``
(S, N) float16, ``target`` (N,) the classes.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pruning_lab.track import STAGES
from pruning_lab.training import Evaluation

FILE = "test_pictures.npz"


@dataclass(frozen=True)
class Pictures:
    """Correctness (N,) and loss (N,) of the N test pictures, by (track, step, stage)."""

    correct: Mapping[tuple[str, int, str], np.ndarray]
    loss: Mapping[tuple[str, int, str], np.ndarray]
    target: np.ndarray

    def at(self, track: str, step: int, stage: str) -> tuple[np.ndarray, np.ndarray]:
        """Return correctness and loss; a stage that changed nothing has those of the one before.

        Raises KeyError if the step was not measured at all.
        """
        for each in reversed(STAGES[: STAGES.index(stage) + 1]):
            if (track, step, each) in self.correct:
                return self.correct[track, step, each], self.loss[track, step, each]
        raise KeyError((track, step, stage))


def to_bytes(measured: Mapping[tuple[str, int, str], Evaluation]) -> bytes:
    """Return the content of the file; all evaluations are of the same pictures."""
    each = list(measured.values())
    content = io.BytesIO()
    np.savez_compressed(
        content,
        measured=np.array([f"{track}/{step}/{stage}" for track, step, stage in measured]),
        correct=np.packbits([one.correct for one in each], axis=1),
        loss=np.array([np.minimum(one.losses, np.finfo(np.float16).max) for one in each], "f2"),
        target=each[0].targets.astype(np.int32),
    )
    return content.getvalue()


def read(path: Path) -> Pictures:
    """Read the file."""
    with np.load(path) as file:
        target = file["target"]
        names = [tuple(name.rsplit("/", 2)) for name in file["measured"].tolist()]
        keys = [(track, int(step), stage) for track, step, stage in names]
        correct = np.unpackbits(file["correct"], axis=1, count=len(target)).astype(bool)
        return Pictures(
            dict(zip(keys, correct, strict=True)),
            dict(zip(keys, file["loss"].astype(np.float32), strict=True)),
            target,
        )
