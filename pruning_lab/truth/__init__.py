"""Measure what a network loses when units are removed in the order of each criterion.

``python -m pruning_lab.truth`` does so for one network, ``python -m pruning_lab.truth.join`` puts
the results of several networks together.
"""

from pruning_lab.truth.layer import Curve, LayerTruth, Settings, judge
from pruning_lab.truth.recalibrated import Outcomes, RecalibratedRemovals, calibration_pictures
from pruning_lab.truth.removals import Harm, Removals, at_shares, capped
from pruning_lab.truth.tables import by_layer, over_networks, overall, quantile

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
