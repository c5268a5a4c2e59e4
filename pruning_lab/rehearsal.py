"""Store and read back, before any work, what a run will keep: nothing is lost at its end."""

import copy
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load, save
from torch import nn

from pruning_lab.attributions.reduction import Estimate
from pruning_lab.attributions.scores import load_estimates, save_estimates
from pruning_lab.checkpoint import all_tensors, plain_copies
from pruning_lab.errors import UserError
from pruning_lab.random_streams import streams_kept


def check_storable(model: nn.Module, layers: Iterable[str]) -> None:
    """UserError unless a model's state, and scores of its layers, come back from disk as they were.

    The state is that of ``model``; ``layers`` are the names under which scores will be kept.
    """
    state = all_tensors(model)
    for key, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise UserError(
                f"The model's state '{key}' is of type {type(value).__name__} and cannot be kept: "
                "only tensors are. Make it a buffer (register_buffer), or drop get_extra_state."
            )
    for key, parameter in model.named_parameters():
        if state.get(key) is not parameter:
            raise UserError(
                f"The model's state_dict() does not give its parameter '{key}' as it is: what is "
                "kept would be another network. Take the hook on state_dict() out."
            )
    try:
        kept = load(save(plain_copies(state)))
        lost = [key for key, value in state.items() if not _same(value, kept[key])]
    except Exception as error:  # whatever safetensors raises for tensors of other kinds
        raise UserError(
            f"The model's state cannot be kept: {error}. Only plain, dense tensors can be."
        ) from error
    lost += _lost_scores(list(layers))
    if lost:
        raise UserError(
            f"'{lost[0]}' of the model does not come back from disk as it was. Use plain, dense "
            "tensors, and names without control characters."
        )


def check_trained_state(model: nn.Module, input_size: Sequence[int]) -> None:
    """UserError for a model whose state has other names or shapes once it was trained on."""
    parameter = next(model.parameters())
    x = torch.zeros(4, *input_size, device=parameter.device, dtype=parameter.dtype)
    trained = copy.deepcopy(model).train()
    with torch.no_grad(), streams_kept([x.device]):
        try:
            trained(x)
        except Exception as error:  # the user's code: anything may be raised
            raise UserError(f"The model cannot be trained: in training mode, {error}.") from error
    before, after = ({k: v.shape for k, v in all_tensors(m).items()} for m in (model, trained))
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            raise UserError(
                f"The model's state '{key}' is {_told(before.get(key))} when it is new and "
                f"{_told(after.get(key))} after a training step, so what is kept could not be "
                "loaded. Give the buffer its shape in the constructor."
            )


def _told(shape: torch.Size | None) -> str:
    return "not there" if shape is None else f"of shape {tuple(shape)}"


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors have the same kind, shape and bits."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    bits = [each.detach().cpu().contiguous().flatten().view(torch.uint8) for each in (one, other)]
    return torch.equal(*bits)


def _lost_scores(layers: list[str]) -> list[str]:
    """The layers whose scores cannot be kept under their names."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scores.npz"
        blank = {layer: Estimate(np.full(1, number)) for number, layer in enumerate(layers)}
        try:
            save_estimates({"criterion": blank}, path)
            kept = load_estimates(path).get("criterion", {})
        except (UnicodeError, ValueError):
            return [layer for layer in layers if not layer.isprintable()] or layers
    return [k for k, v in blank.items() if k not in kept or kept[k].scores != v.scores]
