"""What criteria are worth, by what really happens when units go. ``python -m pruning_lab.truth``"""

from pruning_lab.truth.layer import LayerTruth, Settings, judge
from pruning_lab.truth.removals import Removals, grid, mean_rise
from pruning_lab.truth.tables import by_layer, overall

__all__ = [
    "LayerTruth",
    "Removals",
    "Settings",
    "by_layer",
    "grid",
    "judge",
    "mean_rise",
    "overall",
]
