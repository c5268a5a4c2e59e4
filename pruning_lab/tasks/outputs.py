"""Check that a model gives numbers of the right shape, and each sample its own."""

from typing import Any

import torch
from torch import nn

from pruning_lab.datasets import TARGETS, Splits
from pruning_lab.errors import UserError
from pruning_lab.runtime.model_state import all_tensors, evaluating
from pruning_lab.runtime.random_streams import streams_kept
from pruning_lab.tasks.task import Task

ROUNDING = 1e-3
"""By what share of the largest output one sample's may differ with the size of its batch."""


TASK_OF = {"class": "classification", "labels": "multilabel", "numbers": "regression"}
"""Kind of targets -> the task that is for them."""


def check_targets(task: Task, splits: Splits) -> None:
    """UserError unless the data set's targets are of the kind that the task is for."""
    if splits.targets != task.targets:
        raise UserError(
            f"{type(task).__name__} is for targets that are {TARGETS[task.targets]}, but those of "
            f"this data set are {TARGETS[splits.targets]}. Choose task={TASK_OF[splits.targets]}."
        )


def check_outputs(model: nn.Module, splits: Splits, of: str) -> torch.Tensor:
    """UserError unless the model makes ``splits.num_classes`` numbers out of each sample by itself.

    ``of`` says of what they are: "classes". Returns the output for two samples of noise.
    """
    names, wanted = set(all_tensors(model)), splits.num_classes
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(2, *splits.input_size, generator=draw).to(device)
    output = _run(model, torch.zeros_like(noise))
    if _shape(output) != (2, wanted):
        raise UserError(
            f"For two images the model gives {_shape(output)}; for a data set of {wanted} {of} it "
            f"must give a tensor of shape (2, {wanted})."
        )
    if not (output.is_meta or output.isfinite().all()):
        raise UserError(
            f"For black images the model gives {output[0].tolist()}: it cannot be trained from "
            "there. Are its weights finite, and drawn?"
        )
    if made := sorted(set(all_tensors(model)) - names):
        raise UserError(
            f"The model makes parameters or buffers in its forward ({', '.join(made)}): a new "
            "model could not take the weights that are kept on the disk. Make them in __init__."
        )
    alone = _run(model, noise[:1])
    if _shape(alone) != (1, wanted):
        raise UserError(
            f"For one image the model gives {_shape(alone)}; it must give a tensor of shape "
            f"(1, {wanted}), since the last batch may be one image. Does it squeeze() the batch "
            "away? flatten(1) and squeeze((2, 3)) keep it."
        )
    _check_rows(model, noise, alone)
    return _run(model, noise)


def _check_rows(model: nn.Module, images: torch.Tensor, alone: torch.Tensor) -> None:
    """UserError where the first image's output depends on the second.

    Nothing is said of models that draw at random even in eval mode.
    """
    both, again = _run(model, images), _run(model, images)
    if both.is_meta or not torch.equal(both, again):
        return
    apart = (both[:1] - alone).abs().max().item()
    if apart > ROUNDING * both.abs().max().item():
        raise UserError(
            f"The model's output for an image depends on the others in its batch, also in eval "
            f"mode: it differs by {apart:.2g}. No image has a result of its own then. Does a layer "
            "take statistics from the batch (track_running_stats=False), or a reshape or a mean "
            "mix its images?"
        )


def _run(model: nn.Module, x: torch.Tensor) -> Any:
    """Return the model's output in eval mode; random streams are not advanced."""
    try:
        with evaluating(model), torch.no_grad(), streams_kept([x.device]):
            return model(x)
    except Exception as error:  # a user's forward may raise anything
        raise UserError(
            f"The model cannot take the data set's images, {tuple(x.shape)}: {error}"
        ) from error


def _shape(output: Any) -> tuple[int, ...] | str:
    return tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
