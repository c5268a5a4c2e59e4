"""Reject unused keys and files in what Hydra composed, and fix where relative paths start."""

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager
from dataclasses import fields
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from hydra._internal.sources_registry import SourcesRegistry
from hydra.conf import HydraConf
from hydra.core.global_hydra import GlobalHydra
from hydra.plugins.config_source import ConfigSource
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pruning_lab.config.sections import Names
from pruning_lab.errors import UserError

log = logging.getLogger("pruning_lab")

CONF = "pruning_lab.conf"

PACKAGED = {"hydra.conf", CONF}
"""Sources of configuration files that are not the user's."""


def check_composed(config: DictConfig, hydra: HydraConf) -> Names:
    """Check the composed configuration; return the names that were chosen for its groups.

    Raises UserError for a group with several names or none, a user's file that is not read, a key
    that is missing or that nothing uses, and a value that cannot be resolved.
    """
    names: dict[str, Any] = {
        group.name: hydra.runtime.choices.get(group.name) for group in fields(Names)
    }
    for group, name in names.items():
        if not isinstance(name, str):
            raise UserError(
                f"{group}: several or none were chosen, but a run needs exactly one. Give "
                f"{group}=NAME; -m {group}=NAME,NAME runs one after the other."
            )
    _check_files(hydra)
    try:
        given = OmegaConf.to_container(config, resolve=True)
        assert isinstance(given, Mapping)
        _check_keys(given, _known()[0], "", OmegaConf.to_yaml(config))
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{error.full_key} cannot be resolved: {reason}.") from error
    return Names(**names)


@contextmanager
def where_given(hydra: HydraConf) -> Iterator[None]:
    """Work in the folder where the command was given, from which all relative paths start."""
    if hydra.job.chdir:
        log.info(
            "hydra.job.chdir=true does not change relative paths: they start from %s. The job's "
            "outputs are in %s.", hydra.runtime.cwd, hydra.runtime.output_dir,
        )  # fmt: skip
    with chdir(hydra.runtime.cwd):
        yield


def _check_files(hydra: HydraConf) -> None:
    """Raise UserError for a user's file that is not read: shadowed by another, or named .yml."""
    sources = list(_sources(hydra))
    if all(source.path in PACKAGED for source in sources):
        return
    overrides = [*hydra.overrides.hydra, *hydra.overrides.task]
    loader = GlobalHydra.instance().config_loader()
    composed = loader.compute_defaults_list(hydra.job.config_name, overrides, RunMode.RUN)
    for path in filter(None, (default.config_path for default in composed.defaults)):
        holders = [source for source in sources if source.is_config(path)]
        unused = [
            f"{source.path}/{path}.yaml"
            for source in holders[1:]
            if source.path not in PACKAGED and _content(source, path) != _content(holders[0], path)
        ]
        yml = (Path(source.path, f"{path}.yml") for source in sources)  # Hydra reads only .yaml
        unused += [str(file) for file in yml if file.is_file()]
        if unused:
            raise UserError(
                f"{unused[0]} is not used: {path} is read from {holders[0].path}. Give your file a "
                f"name of its own, {path}_mine.yaml for example, and choose it by that name."
            )


def _sources(hydra: HydraConf) -> Iterator[ConfigSource]:
    """Yield the places where Hydra looked for files, in this order."""
    for place in hydra.runtime.config_sources:
        if place.schema != "structured":
            kind = SourcesRegistry.instance().resolve(place.schema)
            yield kind(place.provider, f"{place.schema}://{place.path}")


def _content(source: ConfigSource, path: str) -> Any:
    loaded = source.load_config(path)
    return loaded.header, OmegaConf.to_container(loaded.config, resolve=False)


@cache
def _known() -> tuple[Mapping[str, Any], frozenset[str]]:
    """Return the required keys, without arguments of classes, and the optional top-level ones."""

    def read(name: str) -> Any:
        return OmegaConf.to_container(OmegaConf.create((files(CONF) / name).read_text("utf-8")))

    known = read("config.yaml")
    groups = [group for entry in known["defaults"] if isinstance(entry, Mapping) for group in entry]
    optional = {"defaults", "hydra", "experiment", *read("truth.yaml")}
    known |= dict.fromkeys(groups) | {"tracking": read("tracking/mlflow.yaml")}
    return {k: v for k, v in known.items() if k not in optional}, frozenset(optional)


def _check_keys(given: Mapping[Any, Any], known: Mapping[str, Any], prefix: str, text: str) -> None:
    """Raise UserError for a missing key, or one neither ``known`` nor interpolated in ``text``."""
    for key, value in known.items():
        if key not in given:
            raise UserError(f"{prefix}{key} is missing: do not delete it, but set it to a value.")
        inside = given[key]
        if isinstance(value, Mapping) and "_target_" not in value and isinstance(inside, Mapping):
            _check_keys(inside, value, f"{prefix}{key}.", text)
    allowed = {*known, *([] if prefix else _known()[1])}
    for key in given:
        if key not in allowed and not re.search(rf"\$\{{[^}}]*\b{re.escape(str(key))}\b", text):
            raise UserError(
                f"{prefix}{key} is not used by anything; the keys are "
                f"{', '.join(prefix + name for name in known)}."
            )
