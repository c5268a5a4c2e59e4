"""Data sets as four disjoint splits; one file a data set."""

from pruning_lab.datasets.splits import Images, Splits, loader

__all__ = ["Images", "Splits", "loader"]
