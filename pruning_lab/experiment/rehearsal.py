"""Store and read back, before any work, what a run will keep: nothing is lost at its end."""

import copy
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import nn

from pruning_lab.attributions.estimation.reduction import Estimate
from pruning_lab.attributions.estimation.scores import load_estimates, save_estimates
from pruning_lab.attributions.observation.checks import same, same_output, tensors_in
from pruning_lab.errors import UserError
from pruning_lab.pruner.saved_model import plain_copies
from pruning_lab.runtime.model_state import all_tensors, set_tensors, state_kept, uncompiled
from pruning_lab.runtime.random_streams import seed_all, streams_kept

SHARPER = 0.01
"""The share of the usual tolerance for a network that gives the same bits when run twice."""


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
    """UserError unless a trained model comes back from what is kept of it: its tensors.

    A copy of ``model`` is trained for two steps, on samples of ``input_size`` drawn at random. Its
    tensors must have the names and shapes that they had, and, put into another copy, give a network
    with the same outputs in eval mode.
    """
    parameter = next(model.parameters())
    x = torch.randn(4, *input_size, generator=torch.Generator().manual_seed(0)).to(parameter)
    # hooks of a copy may lead to the model
    with uncompiled(), streams_kept([x.device]), state_kept(model):
        seed_all(0)
        trained = copy.deepcopy(model).train()
        for _ in range(2):
            _train(trained, x)
            _check_names_and_shapes(model, trained)
        _check_reloaded(trained.eval(), copy.deepcopy(model).eval(), x)


@torch.enable_grad()
def _train(model: nn.Module, x: torch.Tensor) -> None:
    """A step of gradient descent on some loss; none where no gradient is to be had."""
    try:
        output = model(x.clone())
    except Exception as error:  # the user's code: anything may be raised
        raise UserError(f"The model cannot be trained: in training mode, {error}.") from error
    losses = [(each - 1).square().mean() for each in tensors_in(output) if each.requires_grad]
    try:
        sum(losses, torch.zeros((), device=x.device, requires_grad=True)).backward()
    except Exception:  # the training itself will say it, where there is one
        return
    for parameter in model.parameters():
        gradient, parameter.grad = parameter.grad, None
        if gradient is not None and not gradient.is_sparse and gradient.sum().isfinite():
            parameter.data.sub_(gradient, alpha=1e-2)


def _check_names_and_shapes(model: nn.Module, trained: nn.Module) -> None:
    before, after = ({k: v.shape for k, v in all_tensors(m).items()} for m in (model, trained))
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            raise UserError(
                f"The model's state '{key}' is {_told(before.get(key))} when it is new and "
                f"{_told(after.get(key))} after a training step, so what is kept could not be "
                "loaded. Give the buffer its shape in the constructor."
            )


@torch.no_grad()
def _check_reloaded(trained: nn.Module, fresh: nn.Module, x: torch.Tensor) -> None:
    """UserError unless ``fresh``, given the tensors of ``trained``, computes the same."""

    def output(model: nn.Module) -> Any:
        seed_all(0)  # some draw even in eval mode
        return model(x.clone())

    try:
        first, second = output(trained), output(trained)
    except Exception as error:  # the user's code: anything may be raised
        raise UserError(f"The model cannot be run after it was trained: {error}.") from error
    if not same_output(first, second):
        return  # it draws from a stream of its own: nothing can be told
    try:
        set_tensors(fresh, all_tensors(trained))  # from disk they come back alike: check_storable
        alike = _alike(first, second, output(fresh))
    except Exception as error:  # a state dict or buffers that cannot be written, or user's code
        raise UserError(
            f"The model's trained state cannot be kept and loaded again: {error}. Keep it in plain "
            "parameters and buffers of the shape that they have in the constructor."
        ) from error
    if not alike:
        raise UserError(
            "The model keeps something of its training outside its parameters and buffers: with "
            "these alone, as they are kept on the disk, a new copy gives other outputs. What is "
            "kept would be another network. Make all that training changes a buffer "
            "(register_buffer) and write to it in place."
        )


def _alike(first: Any, second: Any, reloaded: Any) -> bool:
    """Return True if a reloaded network gives the outputs of the original's two runs.

    If those two are equal bit for bit, a smaller tolerance is used.
    """
    if not same_output(first, reloaded):
        return False
    outputs = [list(tensors_in(each)) for each in (first, second, reloaded)]
    if not all(map(torch.equal, *outputs[:2])):
        return True
    largest = [each.abs().max().item() if each.is_floating_point() else 0.0 for each in outputs[0]]
    return all(map(same, outputs[0], outputs[2], [SHARPER * each for each in largest]))


def _told(shape: torch.Size | None) -> str:
    return "not there" if shape is None else f"of shape {tuple(shape)}"


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return True if two tensors have the same type, shape and bits."""
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
