"""How much is each unit worth? One criterion a file."""

from pruning_lab.attributions.apoz import APoZAttributionMetric
from pruning_lab.attributions.base import AttributionMetric
from pruning_lab.attributions.random import RandomAttributionMetric
from pruning_lab.attributions.sensitivity import SensitivityAttributionMetric
from pruning_lab.attributions.shapley import ShapleyAttributionMetric
from pruning_lab.attributions.taylor import TaylorAttributionMetric
from pruning_lab.attributions.weight_norm import WeightNormAttributionMetric

__all__ = [
    "APoZAttributionMetric",
    "AttributionMetric",
    "RandomAttributionMetric",
    "SensitivityAttributionMetric",
    "ShapleyAttributionMetric",
    "TaylorAttributionMetric",
    "WeightNormAttributionMetric",
]
