"""What Hydra composed: all that was given is used, or refused, and paths mean one thing."""

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import chdir, contextmanager
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

from pruning_lab.errors import UserError

log = logging.getLogger("pruning_lab")

CONF = "pruning_lab.conf"

PACKAGED = {"hydra.conf", CONF}
"""Where the files of configuration lie that are not the user's."""


def check_composed(config: DictConfig, hydra: HydraConf, groups: Iterable[str]) -> list[str]:
    """The names that were chosen for ``groups``.

    Raises UserError for several names or none, a file of the user's that is shadowed, a key that
    nothing uses, and a value that cannot be resolved.
    """
    names = [_chosen(group, hydra.runtime.choices.get(group)) for group in groups]
    _check_files(hydra)
    try:
        given = OmegaConf.to_container(config, resolve=True)
        assert isinstance(given, Mapping)
        _check_keys(given, _known()[0], "", OmegaConf.to_yaml(config))
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{error.full_key} cannot be resolved: {reason}.") from error
    return names


@contextmanager
def where_given(hydra: HydraConf) -> Iterator[None]:
    """The folder in which the command was given, from which all relative paths are meant."""
    if hydra.job.chdir:
        log.info(
            "hydra.job.chdir=true moves no path: they all start from %s. The job's outputs are in "
            "%s.", hydra.runtime.cwd, hydra.runtime.output_dir,
        )  # fmt: skip
    with chdir(hydra.runtime.cwd):
        yield


def _chosen(group: str, name: Any) -> str:
    if not isinstance(name, str):
        raise UserError(
            f"{group}: several or none were chosen, and a run has one. Give {group}=NAME; "
            f"-m {group}=NAME,NAME runs one after the other."
        )
    return name


def _check_files(hydra: HydraConf) -> None:
    """UserError for a file of the user's in whose place another one of that name was read."""
    sources = list(_sources(hydra))
    if all(source.path in PACKAGED for source in sources):
        return
    overrides = [*hydra.overrides.hydra, *hydra.overrides.task]
    loader = GlobalHydra.instance().config_loader()
    composed = loader.compute_defaults_list(hydra.job.config_name, overrides, RunMode.RUN)
    for path in filter(None, (default.config_path for default in composed.defaults)):
        holders = [each for each in sources if each.is_config(path)]
        unused = [
            f"{each.path}/{path}.yaml"
            for each in holders[1:]
            if each.path not in PACKAGED and _content(each, path) != _content(holders[0], path)
        ]
        yml = (Path(each.path, f"{path}.yml") for each in sources)  # Hydra reads .yaml alone
        unused += [str(file) for file in yml if file.is_file()]
        if unused:
            raise UserError(
                f"{unused[0]} is not used: {path} is read from {holders[0].path}. Give your file a "
                f"name of its own, {path}_mine.yaml for example, and choose it by that name."
            )


def _sources(hydra: HydraConf) -> Iterator[ConfigSource]:
    """Where Hydra looked for files, in this order."""
    for place in hydra.runtime.config_sources:
        if place.schema != "structured":
            kind = SourcesRegistry.instance().resolve(place.schema)
            yield kind(place.provider, f"{place.schema}://{place.path}")


def _content(source: ConfigSource, path: str) -> Any:
    found = source.load_config(path)
    return found.header, OmegaConf.to_container(found.config, resolve=False)


@cache
def _known() -> tuple[Mapping[str, Any], frozenset[str]]:
    """Every key that a configuration has, and those that it may have; of classes no arguments."""

    def read(name: str) -> Any:
        return OmegaConf.to_container(OmegaConf.create((files(CONF) / name).read_text("utf-8")))

    known = read("config.yaml")
    groups = [group for each in known["defaults"] if isinstance(each, Mapping) for group in each]
    optional = {"defaults", "hydra", "experiment", *read("truth.yaml")}
    known |= dict.fromkeys(groups) | {"tracking": read("tracking/mlflow.yaml")}
    return {k: v for k, v in known.items() if k not in optional}, frozenset(optional)


def _check_keys(given: Mapping[Any, Any], known: Mapping[str, Any], prefix: str, text: str) -> None:
    """UserError for a key that is missing, or that neither the program nor ``text`` refers to."""
    for key, value in known.items():
        if key not in given:
            raise UserError(f"{prefix}{key} is missing: leave it in, and set it to what you want.")
        inside = given[key]
        if isinstance(value, Mapping) and "_target_" not in value and isinstance(inside, Mapping):
            _check_keys(inside, value, f"{prefix}{key}.", text)
    allowed = {*known, *([] if prefix else _known()[1])}
    for key in given:
        if key not in allowed and not re.search(rf"\$\{{[^}}]*\b{re.escape(str(key))}\b", text):
            raise UserError(
                f"{prefix}{key} is not used by anything; the keys are "
                f"{', '.join(prefix + each for each in known)}."
            )
