"""Scores on disk: what every room hands on, criterion by criterion and layer by layer."""

from pathlib import Path

import numpy as np

from pruning_lab.atomic import replacing
from pruning_lab.attributions.reduction import Estimate

LayerEstimates = dict[str, Estimate]
"""layer, or group of layers -> scores (units,) and their errors"""

Estimates = dict[str, LayerEstimates]
"""criterion -> layer -> scores and errors"""

LayerScores = dict[str, np.ndarray]
"""layer -> (units,)"""

Scores = dict[str, LayerScores]
"""criterion -> layer -> (units,)"""

ERRORS = ("sampling_error", "error", "sampling_degrees", "degrees", "skewness")


def scores_of(estimates: Estimates) -> Scores:
    """The scores without their errors."""
    return {
        criterion: {layer: each.scores for layer, each in layers.items()}
        for criterion, layers in estimates.items()
    }


def save_estimates(estimates: Estimates, path: Path) -> None:
    """Scores to npz (arrays only, no objects), written whole or not at all.

    Keys are ``criterion|layer``, and ``|error|criterion|layer`` for what is known of the errors.
    """
    arrays = {}
    for criterion, layers in estimates.items():
        for layer, each in layers.items():
            arrays[f"{criterion}|{layer}"] = each.scores
            for name in ERRORS:
                if (error := getattr(each, name)) is not None:
                    arrays[f"|{name}|{criterion}|{layer}"] = error
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def load_estimates(path: Path) -> Estimates:
    """Scores back from npz, in the order in which they were written."""
    found: Estimates = {}
    with np.load(path, allow_pickle=False) as arrays:
        for which in (key for key in arrays.files if not key.startswith("|")):
            criterion, layer = which.split("|", 1)
            errors = {name: arrays.get(f"|{name}|{which}") for name in ERRORS}
            found.setdefault(criterion, {})[layer] = Estimate(arrays[which], **errors)
    return found
