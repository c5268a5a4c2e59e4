"""Data sets as four disjoint splits; one file per data set."""

from pruning_lab.datasets.samples import TARGETS
from pruning_lab.datasets.splits import Images, Samples, Splits, loader

__all__ = ["TARGETS", "Images", "Samples", "Splits", "loader"]
