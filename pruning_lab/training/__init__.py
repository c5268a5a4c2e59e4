"""Fit and evaluate a model, and recalibrate its BatchNorm layers."""

from pruning_lab.training.recipe import Training

__all__ = ["Training"]
