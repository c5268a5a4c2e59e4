"""Measure the harm of removing units in each criterion's order, compared with random orders.

``python -m pruning_lab.ground_truth`` measures one network, ``python -m
pruning_lab.ground_truth.join`` combines the results of several networks.
"""

from pruning_lab.ground_truth.layer import Curve, LayerTruth, Settings, judge
from pruning_lab.ground_truth.recalibrated import (
    Outcomes,
    RecalibratedRemovals,
    calibration_pictures,
)
from pruning_lab.ground_truth.removals import Harm, Removals, at_shares, capped
from pruning_lab.ground_truth.tables import by_layer, over_networks, overall, quantile

__all__ = [
    "Curve",
    "Harm",
    "LayerTruth",
    "Outcomes",
    "RecalibratedRemovals",
    "Removals",
    "Settings",
    "at_shares",
    "by_layer",
    "calibration_pictures",
    "capped",
    "judge",
    "over_networks",
    "overall",
    "quantile",
]
