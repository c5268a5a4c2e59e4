"""Remove units for good: tensors are sliced, not masked."""

from pruning_lab.pruner.pruner import Pruner

__all__ = ["Pruner"]
