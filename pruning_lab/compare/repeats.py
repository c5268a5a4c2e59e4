"""How far a criterion would agree with itself if it scored again."""

import numpy as np
import pandas as pd

from pruning_lab.attributions.reduction import Estimate
from pruning_lab.attributions.scores import Estimates

AGAIN = {"other_draws": "sampling_error", "other_samples": "error"}
"""What is drawn anew when a network is scored again, and the error that it brings."""


def expected_correlation(estimate: Estimate, of: str = "error") -> float:
    """Pearson's correlation to be expected between two such scorings of the same units.

    (s^2 - mean e^2) / s^2 with the scores' variance s^2 over the units and their squared errors
    e^2, at least 0: the reliability of classical test theory (Lord & Novick, 1968). ``of`` is
    ``"error"`` for other samples and draws, ``"sampling_error"`` for other draws on the same
    samples. NaN where that error is not known, for constant scores, and below 3 units.
    """
    errors, scores = getattr(estimate, of), estimate.scores
    if errors is None or len(scores) < 3 or np.ptp(scores) == 0:
        return float("nan")
    return max(0.0, float(1 - np.mean(errors**2) / scores.var(ddof=1)))


def scored_again(estimates: Estimates) -> pd.DataFrame:
    """``expected_correlation`` of each criterion in each layer: ``metric layer`` and AGAIN."""
    rows = [
        (criterion, layer, *(expected_correlation(each, of) for of in AGAIN.values()))
        for criterion, layers in estimates.items()
        for layer, each in layers.items()
    ]
    return pd.DataFrame(rows, columns=["metric", "layer", *AGAIN])
