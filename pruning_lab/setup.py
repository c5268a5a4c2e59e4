"""From a configuration to the objects of an experiment; what is impossible is refused here."""

import inspect
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import MISSING, DictConfig, OmegaConf
from torch import nn

from pruning_lab.datasets import Splits
from pruning_lab.errors import UserError, check_count
from pruning_lab.modes import evaluating


def build(config: DictConfig, group: str = "", **arguments: Any) -> Any:
    """The object that ``config._target_`` describes; the reason of a refusal is handed on.

    ``group`` says whose settings they are where the refusal itself does not.
    """
    try:
        missing = OmegaConf.missing_keys(config)
        if missing:
            raise UserError(f"{group}.{min(missing)} is missing: set it on the command line.")
        return instantiate(config, **arguments)
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            message = str(error.__cause__)
            named = message if message.startswith(group) else f"{group}: {message}"
            raise UserError(named) from None
        reason = str(error.__cause__ or error).replace(".__init__()", "()")
        raise UserError(f"{config.get('_target_')} cannot be built: {reason}.") from error


def find_target(target: str, group: str) -> Any:
    """The class or function that ``_target_`` names in the settings of a group."""
    if target == MISSING:
        raise UserError(
            f"{group}._target_ is missing: name your class, {group}._target_=their_package.Net."
        )
    try:
        return get_object(target)
    except Exception as error:  # importing a user's module may raise anything
        raise UserError(f"{group}._target_={target} cannot be imported: {error}") from error


def build_model(config: DictConfig, splits: Splits) -> nn.Module:
    """The model, told of the data set what its signature asks for."""
    known = {
        "num_classes": splits.num_classes,
        "in_channels": splits.in_channels,
        "input_size": splits.input_size,
    }
    wanted = inspect.signature(find_target(plain(config)["_target_"], "model")).parameters
    missing = {key: value for key, value in known.items() if key in wanted and key not in config}
    model = build(config, "model", **missing)
    if not isinstance(model, nn.Module):
        raise UserError(
            f"model._target_={config._target_} gives a {type(model).__name__}, not an nn.Module."
        )
    _check_outputs(model, splits)
    return model


def _check_outputs(model: nn.Module, splits: Splits) -> None:
    """UserError unless the model makes one number a class out of the data set's images."""
    x = torch.zeros(2, *splits.input_size)
    try:
        with evaluating(model), torch.no_grad():
            output = model(x)
    except Exception as error:  # a user's forward may raise anything
        raise UserError(
            f"The model cannot take the data set's images, {tuple(x.shape)}: {error}"
        ) from error
    found = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
    if found != (2, splits.num_classes):
        raise UserError(
            f"For two images the model gives {found}; for a data set of {splits.num_classes} "
            f"classes it must give a tensor of shape (2, {splits.num_classes})."
        )


def find_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is a GPU when there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device={name} is not to be had here. Use auto or cpu.") from error
    return device


def check_numbers(config: DictConfig) -> None:
    """Refuse what would only fail when it is used, after hours perhaps."""
    for name, seed in config.seeds.items():
        check_count(f"seeds.{name}", seed, 0)
    check_count("seed", config.seed, 0)
    check_count("scoring.batch_size", config.scoring.batch_size)
    check_count("after_cut.recalibrate", config.after_cut.recalibrate, 0)
    switches = {f"controls.{name}": value for name, value in config.controls.items()}
    switches["after_cut.rescale_dropout"] = config.after_cut.rescale_dropout
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise UserError(f"{name}={value} is not possible; it is true or false.")
    if config.threads is not None:
        check_count("threads", config.threads)


def plain(config: DictConfig) -> dict[str, Any]:
    """A configuration as plain, resolved dictionaries."""
    found = OmegaConf.to_container(config, resolve=True)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}
