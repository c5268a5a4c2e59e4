"""Build the objects that parts of the configuration describe."""

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import MISSING, DictConfig, OmegaConf

from pruning_lab.errors import UserError


def build(config: DictConfig, group: str = "", kind: type = object, **arguments: Any) -> Any:
    """Build and return the object that ``config._target_`` names.

    Lists and mappings of the configuration become plain Python ones; ``arguments`` are passed
    unchanged. ``group`` is the prefix of error messages. Raises UserError, with the reason, if the
    object cannot be built or is not a ``kind``.
    """
    if not isinstance(config, DictConfig) or "_target_" not in config:
        raise UserError(
            f"{group}={config} is not possible: it has no _target_, the class to build."
        )
    try:
        missing = OmegaConf.missing_keys(config)
        if missing:
            raise UserError(f"{group}.{min(missing)} is missing: set it on the command line.")
        convert = config.get("_convert_", "all")
        made = instantiate(config, _convert_=convert, _partial_=True)  # arguments bypass Hydra
        _check_settings(made, group, arguments)
        if not config.get("_partial_", False):
            made = made(**arguments)
    except UserError as error:
        message = str(error)
        raise UserError(message if message.startswith(group) else f"{group}: {message}") from None
    except Exception as error:  # importing and calling a user's code may raise anything
        cause = error.__cause__ if isinstance(error, InstantiationException) else error
        if isinstance(cause, UserError):  # raised by a nested object
            raise UserError(f"{group}: {cause}") from None
        reason = str(cause or error).replace(".__init__()", "()")
        raise UserError(f"{config.get('_target_')} cannot be built: {reason}.") from error
    if not isinstance(made, kind):
        raise UserError(
            f"{group}._target_={config._target_} gives a {type(made).__name__}, not a "
            f"{kind.__name__}."
        )
    return made


def _check_settings(made: partial[Any], group: str, arguments: Mapping[str, Any]) -> None:
    """Raise UserError for a setting that the target does not accept; name those that it does."""
    try:
        parameters = inspect.signature(made.func).parameters
    except (TypeError, ValueError):  # some built-in functions have no signature
        return
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    unknown = [name for name in made.keywords if name not in parameters]
    if unknown:
        known = sorted(set(parameters) - set(arguments))
        raise UserError(
            f"{group}.{unknown[0]} is not a setting of {made.func.__qualname__}, which has "
            f"{', '.join(known) or 'none'}."
        )


def find_target(target: str, group: str) -> Any:
    """Import ``target``, the ``_target_`` of ``group``; raise UserError unless it is callable."""
    if target == MISSING:
        raise UserError(
            f"{group}._target_ is missing: name your class, {group}._target_=their_package.Net."
        )
    try:
        imported = get_object(target)
    except Exception as error:  # importing a user's module may raise anything
        raise UserError(f"{group}._target_={target} cannot be imported: {error}") from error
    if not callable(imported):
        kind = type(imported).__name__
        raise UserError(f"{group}._target_={target} is a {kind}; name a class or a function.")
    return imported


def plain(config: DictConfig) -> dict[str, Any]:
    """Return a configuration as plain, resolved dictionaries."""
    container = OmegaConf.to_container(config, resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}
