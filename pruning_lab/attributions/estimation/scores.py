"""Scores by criterion and layer, as all packages exchange them, and their files."""

from pathlib import Path

import numpy as np

from pruning_lab.attributions.estimation.reduction import Estimate
from pruning_lab.runtime.files import replacing

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
    """Return the scores without their errors."""
    return {
        criterion: {layer: estimate.scores for layer, estimate in layers.items()}
        for criterion, layers in estimates.items()
    }


def save_estimates(estimates: Estimates, path: Path) -> None:
    """Write scores atomically to npz (arrays only, no objects).

    Keys are ``criterion|layer``, and ``|name|criterion|layer`` for each of ERRORS that is known.
    """
    arrays = {}
    for criterion, layers in estimates.items():
        for layer, estimate in layers.items():
            arrays[f"{criterion}|{layer}"] = estimate.scores
            for name in ERRORS:
                if (error := getattr(estimate, name)) is not None:
                    arrays[f"|{name}|{criterion}|{layer}"] = error
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def load_estimates(path: Path) -> Estimates:
    """Read scores from npz, in the order in which they were written."""
    estimates: Estimates = {}
    with np.load(path, allow_pickle=False) as arrays:
        for name in (key for key in arrays.files if not key.startswith("|")):
            criterion, layer = name.split("|", 1)
            errors = {error: arrays.get(f"|{error}|{name}") for error in ERRORS}
            estimates.setdefault(criterion, {})[layer] = Estimate(arrays[name], **errors)
    return estimates
