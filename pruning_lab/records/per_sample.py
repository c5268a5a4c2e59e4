"""The loss of every test sample at every step of a run, and whether it was right, in one file.

Statistics over samples need them: a mean does not tell which samples two networks get wrong. The
file is an npz: ``measured`` (S,) names the measurements, ``main/3/after`` for example (track, step,
stage), ``loss`` is (S, N) float16, ``target`` (N, ...). Where samples are right or wrong,
``correct`` (S, ceil(N / 8)) holds the bits of ``numpy.packbits``.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pruning_lab.records.step import STAGES
from pruning_lab.tasks.task import Samples

FILE = "test_pictures.npz"


@dataclass(frozen=True)
class Pictures:
    """Loss (N,) and correctness (N,) of the N test samples, by (track, step, stage).

    ``correct`` is empty for tasks whose samples are neither right nor wrong (regression).
    """

    correct: Mapping[tuple[str, int, str], np.ndarray]
    loss: Mapping[tuple[str, int, str], np.ndarray]
    target: np.ndarray

    def at(self, track: str, step: int, stage: str) -> tuple[np.ndarray | None, np.ndarray]:
        """Return correctness and loss; a stage that changed nothing has those of the one before.

        Raises KeyError if the step was not measured at all.
        """
        for name in reversed(STAGES[: STAGES.index(stage) + 1]):
            key = (track, step, name)
            if key in self.loss:
                return self.correct.get(key), self.loss[key]
        raise KeyError((track, step, stage))


def to_bytes(measured: Mapping[tuple[str, int, str], Samples]) -> bytes:
    """Return the content of the file; all results are of the same samples."""
    results = list(measured.values())
    targets = results[0].get("targets", np.empty(0))
    cap = np.finfo(np.float16).max
    arrays = {
        "measured": np.array([f"{track}/{step}/{stage}" for track, step, stage in measured]),
        "loss": np.array([np.minimum(samples["losses"], cap) for samples in results], "f2"),
        "target": targets if targets.dtype.kind == "f" else targets.astype(np.int32),
    }
    if "correct" in results[0]:
        arrays["correct"] = np.packbits([samples["correct"] for samples in results], axis=1)
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
    return content.getvalue()


def read(path: Path) -> Pictures:
    """Read the file."""
    with np.load(path) as file:
        target, losses = file["target"], file["loss"].astype(np.float32)
        names = (name.rsplit("/", 2) for name in file["measured"].tolist())
        keys = [(track, int(step), stage) for track, step, stage in names]
        correct = {}
        if "correct" in file:
            bits = np.unpackbits(file["correct"], axis=1, count=len(target)).astype(bool)
            correct = dict(zip(keys, bits, strict=True))
        return Pictures(correct, dict(zip(keys, losses, strict=True)), target)
