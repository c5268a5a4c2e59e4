"""Tasks, one a file: the loss, the measures, and how a batch is passed to the model."""

from pruning_lab.tasks.classification import Classification
from pruning_lab.tasks.multilabel import Multilabel
from pruning_lab.tasks.regression import Regression
from pruning_lab.tasks.task import Measure, Task

__all__ = ["Classification", "Measure", "Multilabel", "Regression", "Task"]
