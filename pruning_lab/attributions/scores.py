"""Scores on disk: what every room hands on, criterion by criterion and layer by layer."""

import os
from pathlib import Path

import numpy as np

LayerScores = dict[str, np.ndarray]
"""layer -> (units,)"""

Scores = dict[str, LayerScores]
"""criterion -> layer -> (units,)"""


def save_scores(scores: Scores, path: Path) -> None:
    """Scores to npz (arrays only, no objects), written whole or not at all."""
    arrays = {
        f"{criterion}|{layer}": values
        for criterion, layers in scores.items()
        for layer, values in layers.items()
    }
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    np.savez(temporary, **arrays)  # type: ignore[arg-type]
    temporary.replace(path)


def load_scores(path: Path) -> Scores:
    """Scores back from npz, in the order in which they were written."""
    scores: Scores = {}
    with np.load(path, allow_pickle=False) as arrays:
        for key in arrays.files:
            criterion, layer = key.split("|", 1)
            scores.setdefault(criterion, {})[layer] = arrays[key]
    return scores
