"""Data sets as four disjoint splits; one file per data set."""

from pruning_lab.datasets.splits import Images, Samples, Splits, loader
from pruning_lab.datasets.targets import TARGETS

__all__ = ["TARGETS", "Images", "Samples", "Splits", "loader"]
