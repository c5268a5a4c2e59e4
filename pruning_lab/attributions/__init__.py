"""Attribution metrics: criteria that score the units of a layer, one per file."""

from pruning_lab.attributions.base import AttributionMetric
from pruning_lab.attributions.criteria.apoz import APoZAttributionMetric
from pruning_lab.attributions.criteria.random import RandomAttributionMetric
from pruning_lab.attributions.criteria.sensitivity import SensitivityAttributionMetric
from pruning_lab.attributions.criteria.shapley import ShapleyAttributionMetric
from pruning_lab.attributions.criteria.taylor import TaylorAttributionMetric
from pruning_lab.attributions.criteria.weight_norm import WeightNormAttributionMetric

__all__ = [
    "APoZAttributionMetric",
    "AttributionMetric",
    "RandomAttributionMetric",
    "SensitivityAttributionMetric",
    "ShapleyAttributionMetric",
    "TaylorAttributionMetric",
    "WeightNormAttributionMetric",
]
