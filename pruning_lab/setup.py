"""From a configuration to the objects of an experiment; what is impossible is refused here."""

import hashlib
import inspect
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from pruning_lab.datasets import Splits
from pruning_lab.errors import UserError


def build(config: DictConfig, **arguments: Any) -> Any:
    """The object that ``config._target_`` describes; the reason of a refusal is handed on."""
    try:
        return instantiate(config, **arguments)
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        reason = str(error.__cause__ or error).replace(".__init__()", "()")
        raise UserError(f"{config.get('_target_')} cannot be built: {reason}.") from error


def build_model(config: DictConfig, splits: Splits) -> nn.Module:
    """The model, told of the data set what its signature asks for."""
    known = {
        "num_classes": splits.num_classes,
        "in_channels": splits.in_channels,
        "input_size": splits.input_size,
    }
    if OmegaConf.is_missing(config, "_target_"):
        raise UserError(
            "model._target_ is missing: name your class, model._target_=their_package.Net."
        )
    try:
        wanted = inspect.signature(get_object(config._target_)).parameters
    except Exception as error:  # importing a user's module may raise anything
        raise UserError(f"model._target_={config._target_} cannot be imported: {error}") from error
    missing = {key: value for key, value in known.items() if key in wanted and key not in config}
    model = build(config, **missing)
    if not isinstance(model, nn.Module):
        raise UserError(
            f"model._target_={config._target_} gives a {type(model).__name__}, not an nn.Module."
        )
    return model


def find_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is a GPU when there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device={name} is not to be had: {reason}. Use auto or cpu.") from error
    return device


def plain(config: DictConfig) -> dict[str, Any]:
    """A configuration as plain, resolved dictionaries."""
    found = OmegaConf.to_container(config, resolve=True)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def baseline_determinants(config: DictConfig, device: torch.device) -> dict[str, Any]:
    """What the trained baseline depends on; where data and results lie does not matter."""
    dataset = plain(config.dataset)
    for place in ("root", "download", "debian_package"):
        dataset.pop(place, None)
    checkpoint = config.baseline.checkpoint
    return {
        "model": plain(config.model),
        "dataset": dataset,
        "training": plain(config.baseline.training) if checkpoint is None else None,
        "checkpoint": None if checkpoint is None else _digest(Path(checkpoint)),
        "seeds": {"init": config.seeds.init, "order": config.seeds.order},
        "threads": torch.get_num_threads(),
        "device": device.type,
    }


def _digest(path: Path) -> str:
    if not path.is_file():
        raise UserError(
            f"baseline.checkpoint={path} does not exist; give a state dict (.safetensors, .pt)."
        )
    return hashlib.sha256(path.read_bytes()).hexdigest()
