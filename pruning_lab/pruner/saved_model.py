"""Save and load models: tensors as safetensors, the recipe as JSON, never a pickle."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pruning_lab.errors import UserError
from pruning_lab.graph.kinds import WIDTHS, WITH_WIDTHS
from pruning_lab.runtime.files import replacing, write_json
from pruning_lab.runtime.model_state import all_tensors, set_tensors

TENSORS, RECIPE, VERSION = "model.safetensors", "recipe.json", 2
ATTRIBUTES = (*WIDTHS, "p")


def save_state(model: nn.Module, path: str | Path) -> None:
    """Save the state dict, and the buffers that it leaves out, as safetensors."""
    save_tensors(all_tensors(model), Path(path))


def load_state(model: nn.Module, path: str | Path) -> None:
    """Load the state dict in ``path``: .safetensors, or .pt/.pth that holds only tensors.

    Non-persistent buffers may be present or missing. Buffers may hold NaN, which marks empty
    entries; parameters may not. Raises UserError when the file is missing, holds anything but
    tensors, or does not fit; the model is then unchanged.
    """
    path = Path(path)
    state = _read(path)
    current = model.state_dict()
    current |= {key: value for key, value in all_tensors(model).items() if key in state}
    _check_keys(path, state, current)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    broken = [key for key in current if key in parameters and state[key].isnan().any()]
    if broken:
        raise UserError(
            f"{path} holds NaN in {_some(broken)}: training diverged before it was saved. Give "
            "another."
        )
    pairs = [(key, state[key], value) for key, value in current.items()]
    shapes = [_misfit(k, _shape(a), _shape(b)) for k, a, b in pairs if a.shape != b.shape]
    kinds = [
        _misfit(key, there.dtype, here.dtype)
        for key, there, here in pairs
        if there.is_floating_point() != here.is_floating_point()
    ]
    _refuse_misfits(path, shapes + kinds)
    set_tensors(model, state)


def save_pruned(model: nn.Module, folder: str | Path, kept: Mapping[str, list[int]]) -> None:
    """Save a pruned model: its tensors, and the recipe of how it differs from the original.

    ``kept`` (``Pruner.kept``) lists for each pruned layer the original numbers of remaining units.
    """
    folder = Path(folder)
    recipe = {"version": VERSION, "kept": dict(kept), "modules": _described(model)}
    save_tensors(all_tensors(model), folder / TENSORS)
    write_json(folder / RECIPE, recipe)


def load_pruned(model: nn.Module, folder: str | Path) -> nn.Module:
    """Turn ``model``, newly built like the original, into the pruned one in ``folder``.

    Raises UserError when the files are missing or of another model; ``model`` is then unchanged.
    """
    tensors, recipe = Path(folder) / TENSORS, Path(folder) / RECIPE
    state, described = _read(tensors), _read_recipe(recipe)
    current = all_tensors(model)
    _check_keys(tensors, state, current)
    misfits = [
        _misfit(key, _shape(state[key]), _shape(value))
        for key, value in current.items()
        if not _can_be_left_of(state[key], value)
    ]
    _refuse_misfits(tensors, misfits + _differences(described, _described(model)))
    for key, value in state.items():  # copies are aligned: sums stay the same, bit for bit
        current[key].data = value.to(current[key].device, copy=True)
    for name, attributes in described.items():
        for attribute in attributes.keys() & set(ATTRIBUTES):
            stored = attributes[attribute]
            width = tuple(stored) if isinstance(stored, list) else stored
            setattr(model.get_submodule(name), attribute, width)
    return model


def save_tensors(
    tensors: Mapping[str, torch.Tensor], path: Path, about: dict[str, str] | None = None
) -> None:
    """Save tensors, with the metadata ``about``, as safetensors; completely or not at all."""
    with replacing(path) as temporary:
        save_file(plain_copies(tensors), temporary, about)


def plain_copies(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copy to the CPU: safetensors refuses tensors that share memory or are not contiguous."""
    return {
        key: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for key, value in tensors.items()
    }


def _described(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Describe the modules that pruning changes: qualified name -> kind and widths (or rate)."""
    return {
        name: {"kind": type(module).__name__}
        | {key: getattr(module, key) for key in ATTRIBUTES if hasattr(module, key)}
        for name, module in model.named_modules()
        if isinstance(module, WITH_WIDTHS)
    }


def _differences(there: dict[str, dict[str, Any]], here: dict[str, dict[str, Any]]) -> list[str]:
    """List the modules that differ between two descriptions, whatever their widths."""
    return [
        _misfit(name or "the model", _kind(there, name), _kind(here, name))
        for name in here | there
        if _kind(there, name) != _kind(here, name) or there[name].keys() != here[name].keys()
    ]


def _misfit(name: str, there: object, here: object) -> str:
    return f"{name} is {there} there and {here} in the model"


def _kind(described: dict[str, dict[str, Any]], name: str) -> str:
    return str(described.get(name, {}).get("kind", "another module"))


def _can_be_left_of(pruned: torch.Tensor, original: torch.Tensor) -> bool:
    return pruned.ndim == original.ndim and all(
        left <= width for left, width in zip(pruned.shape, original.shape, strict=True)
    )


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"


def _read(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise UserError(f"{path} is not there; give the path of a file with a state dict.")
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise UserError(f"{path} is not read: a state dict is a .safetensors, .pt or .pth file.")
    try:
        state: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # a damaged file makes the readers raise nearly anything
        raise UserError(
            f"{path} cannot be read: it is damaged, or holds other objects than tensors, which "
            "are not loaded for safety. Save the model's state_dict() and nothing else."
        ) from error
    if not isinstance(state, Mapping) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items()
    ):
        raise UserError(
            f"{path} holds no state dict (names and tensors). Save the model's state_dict() and "
            "nothing else."
        )
    return dict(state)


def _read_recipe(path: Path) -> dict[str, dict[str, Any]]:
    """Return the modules of a recipe, described as by ``_described``."""
    if not path.is_file():
        raise UserError(f"{path} is not there; a pruned model has its recipe beside it.")
    try:
        recipe = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}. Save the pruned model again.") from error
    version = recipe.get("version") if isinstance(recipe, dict) else None
    if version != VERSION:
        raise UserError(
            f"{path} has version {version}; this program reads version {VERSION}. Prune the model "
            "again, or read it with the program that wrote it."
        )
    modules = recipe.get("modules")
    if not _is_description(modules):
        raise UserError(f"{path} is damaged: its modules have no widths. Save the model again.")
    return dict(modules)


def _is_description(modules: Any) -> bool:
    return isinstance(modules, dict) and all(
        isinstance(attributes, dict)
        and all(key == "kind" or _is_width(value) for key, value in attributes.items())
        for attributes in modules.values()
    )


def _is_width(value: Any) -> bool:
    """Return whether a value is a number, or the shape of a LayerNorm."""
    sizes = value if isinstance(value, list) else [value]
    return all(type(size) in (int, float) for size in sizes)


def _check_keys(path: Path, state: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    missing, unexpected = [k for k in own if k not in state], [k for k in state if k not in own]
    if missing or unexpected:
        raise UserError(
            f"{path} does not fit the model: {_some(missing)} missing, {_some(unexpected)} "
            "unexpected. Is it of another model?"
        )


def _refuse_misfits(path: Path, wrong: list[str]) -> None:
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(
            f"{path} does not fit the model: {'; '.join(wrong[:3])}{more}. Is it of another model "
            "or data set?"
        )


def _some(keys: list[str]) -> str:
    shown = ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
    return f"{len(keys)} keys ({shown})" if keys else "no key"
