"""Models to disk and back: tensors as safetensors, the recipe as JSON, never a pickle."""

import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from pruning_lab.errors import UserError
from pruning_lab.graph.kinds import LAYERS, BatchNorm, Dropout

TENSORS, RECIPE, VERSION = "model.safetensors", "recipe.json", 1
ATTRIBUTES = ("in_channels", "out_channels", "in_features", "out_features", "num_features", "p")


def save_state(model: nn.Module, path: Path) -> None:
    """The state dict as safetensors, written whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # clones: safetensors refuses tensors that share memory (tied weights)
    state = {key: value.detach().clone().contiguous() for key, value in model.state_dict().items()}
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    save_file(state, temporary)
    temporary.replace(path)


def load_state(model: nn.Module, path: Path) -> None:
    """Give ``model`` the state dict in ``path`` (.safetensors, or .pt/.pth without objects).

    Raises UserError when the file is missing, holds anything but tensors, or does not fit;
    the model is then unchanged.
    """
    state = _read(path)
    own = model.state_dict()
    _check_keys(path, state, own)
    for key, value in state.items():
        if value.shape != own[key].shape:
            raise UserError(
                f"{path} does not fit: {key} has shape {tuple(value.shape)} there and "
                f"{tuple(own[key].shape)} in the model. Is it of another model or data set?"
            )
    model.load_state_dict(state)


def save_pruned(model: nn.Module, folder: Path, kept: Mapping[str, list[int]]) -> None:
    """A pruned model: its tensors, and the recipe that says how it differs from the original.

    ``kept`` (``Pruner.kept``) lists for every pruned layer the original numbers of its units.
    """
    save_state(model, folder / TENSORS)
    recipe = {
        "version": VERSION,
        "kept": {layer: list(units) for layer, units in kept.items()},
        "attributes": {
            name: {key: getattr(module, key) for key in ATTRIBUTES if hasattr(module, key)}
            for name, module in _resizable(model).items()
        },
    }
    temporary = folder / f".{os.getpid()}-{RECIPE}"
    temporary.write_text(json.dumps(recipe, indent=1) + "\n")
    temporary.replace(folder / RECIPE)


def load_pruned(model: nn.Module, folder: Path) -> nn.Module:
    """Turn ``model``, fresh from the original constructor, into the pruned one in ``folder``.

    Raises UserError when the files are missing or of another model; it is then unchanged.
    """
    folder = Path(folder)
    state, recipe = _read(folder / TENSORS), _read_recipe(folder / RECIPE)
    own = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    _check_keys(folder / TENSORS, state, model.state_dict())
    modules = _resizable(model)
    if set(modules) != set(recipe["attributes"]) or any(
        own[key].ndim != value.ndim for key, value in state.items()
    ):
        raise UserError(f"{folder} holds a pruned model of another architecture; nothing was done.")
    for key, value in state.items():
        own[key].data = value.to(own[key].device)
    for name, attributes in recipe["attributes"].items():
        for key, value in attributes.items():
            setattr(modules[name], key, value)
    return model


def _resizable(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that have attributes beside their tensors that pruning changes."""
    kinds: tuple[type[nn.Module], ...] = (*LAYERS, BatchNorm, Dropout)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def _read(path: Path) -> dict[str, torch.Tensor]:
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist; give the path of a state dict.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UserError(
            f"{path} cannot be read as a state dict: {str(error).splitlines()[0]} Give a "
            ".safetensors file, or a .pt/.pth file that holds tensors only."
        ) from error
    if not isinstance(state, Mapping) or not all(
        isinstance(value, torch.Tensor) for value in state.values()
    ):
        raise UserError(f"{path} holds no state dict (a mapping of names to tensors).")
    return dict(state)


def _read_recipe(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path} does not exist; a pruned model has its recipe beside it.")
    recipe = json.loads(path.read_text())
    if recipe.get("version") != VERSION:
        raise UserError(
            f"{path} has version {recipe.get('version')}; this program reads version {VERSION}."
        )
    return recipe


def _check_keys(path: Path, state: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    missing, unexpected = [k for k in own if k not in state], [k for k in state if k not in own]
    if missing or unexpected:
        raise UserError(
            f"{path} does not fit the model: {_some(missing)} missing, {_some(unexpected)} "
            "unexpected. Is it of another model?"
        )


def _some(keys: list[str]) -> str:
    shown = ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
    return f"{len(keys)} keys ({shown})" if keys else "no key"
