"""What a network is for: its loss, its measures, how a batch goes in. One task a file."""

from pruning_lab.tasks.classification import Classification
from pruning_lab.tasks.multilabel import Multilabel
from pruning_lab.tasks.regression import Regression
from pruning_lab.tasks.task import Measure, Task

__all__ = ["Classification", "Measure", "Multilabel", "Regression", "Task"]
