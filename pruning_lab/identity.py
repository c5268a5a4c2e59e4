"""What determines a result, and the names that are made of it.

Where data and results lie, how many jobs run at once and what is kept of a run determine nothing.
"""

import ast
import hashlib
import inspect
import json
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.metadata import packages_distributions, version
from importlib.util import resolve_name
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from pruning_lab import ranks, training
from pruning_lab.datasets import Splits
from pruning_lab.errors import UserError
from pruning_lab.setup import build, check_numbers, find_device, find_target, plain
from pruning_lab.track import Track

Config = Mapping[str, Any]
"""A configuration as plain dictionaries."""

PLACES = ("root", "download", "debian_package")
"""Settings of a data set that say where it lies: what is there counts, by its fingerprint."""

INSTALLED = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}

METHOD = ("metric", "attributions", "schedule", "finetune", "after_cut", "controls", "scoring")
"""What is done with a baseline."""


THREADS = torch.get_num_threads()
"""As many as torch chooses; a job of a sweep must not inherit another job's."""


@dataclass(frozen=True)
class Job:
    """A configuration whose numbers are checked, with its data, before anything else is built.

    ``start`` is what a network starts from, ``name`` the identity of the whole run.
    """

    device: torch.device
    threads: int
    splits: Splits
    start: dict[str, Any]
    name: str


def identify(config: DictConfig) -> Job:
    """What determines the result of a configuration; no model is built."""
    check_numbers(config)
    device, threads = find_device(config.device), config.threads or THREADS
    data = OmegaConf.to_yaml(config.dataset, resolve=True)
    splits, samples = ranks.leader_first(lambda: _data(data))
    settings = plain(config)
    start = start_determinants(settings, samples, device, threads)
    return Job(device, threads, splits, start, identity(run_determinants(start, settings)))


@lru_cache(maxsize=1)  # jobs of a sweep mostly share their data
def _data(settings: str) -> tuple[Splits, str]:
    """The data set of these settings, and its fingerprint."""
    config = OmegaConf.create(settings)
    assert isinstance(config, DictConfig)
    splits: Splits = build(config, "dataset", Splits)
    return splits, splits.fingerprint()


def identity(determinants: Mapping[str, Any]) -> str:
    """Twelve hex digits that name whatever the determinants determine (sha256 of their JSON)."""
    text = json.dumps(determinants, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def start_determinants(
    config: Config, samples: str, device: torch.device, threads: int
) -> dict[str, Any]:
    """What a network starts from: its making, its data, its training, and the arithmetic."""
    checkpoint = config["baseline"]["checkpoint"]
    ways = ranks.count()  # shares of a batch round otherwise than the whole
    return {
        "model": config["model"],
        "dataset": {k: v for k, v in config["dataset"].items() if k not in PLACES},
        "samples": samples,
        "versions": {name: version(name) for name in ("torch", "torchvision", "numpy", "pillow")},
        "training": config["baseline"]["training"] if checkpoint is None else None,
        "checkpoint": None if checkpoint is None else _digest(Path(checkpoint)),
        "seeds": {key: config["seeds"][key] for key in ("init", "order")},
        "threads": threads,
        "device": device.type,
        **({"processes": ways} if ways > 1 else {}),
    }


def baseline_determinants(start: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """What the trained baseline depends on.

    Of the code, the files that define the classes of the model's modules count, and all that the
    training imports.
    """
    classes = {type(module) for module in model.modules()}
    code = {"model": digest_of_code(*classes), "training": digest_of_program(training.fit)}
    return {**start, "code": code}


def run_determinants(start: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """What the result of a whole run depends on; no model is built for it.

    Of the code, all counts that what the configuration names imports, and the pruning of a track.
    """
    parts = ("model", "dataset", "baseline", *METHOD)
    made = [each for part in parts for each in _made(config[part], part)]
    code = {name: digest_of_program(each) for name, each in made}
    return {
        **start,
        **{key: config[key] for key in METHOD},
        "seeds": config["seeds"],
        "code": code | {"track": digest_of_program(Track)},
    }


def _made(part: Config, group: str) -> Iterator[tuple[str, Any]]:
    """All that a part of the configuration makes: where its ``_target_`` stands, and what it is."""
    if "_target_" in part:
        yield group, find_target(part["_target_"], group)
    for key, value in part.items():
        if isinstance(value, Mapping):
            yield from _made(value, f"{group}.{key}")


def digest_of_code(*objects: Any) -> str:
    """A hash of the source files in which classes, functions or modules are defined."""
    files = {inspect.getsourcefile(each) for each in objects}
    sources = [Path(file).read_bytes() for file in sorted(filter(None, files))]
    return hashlib.sha256(b"".join(sources)).hexdigest()[:12]


@cache
def digest_of_program(made: Any) -> str:
    """A hash of the sources of a class or function, a class's ancestors, and all that they import.

    Imports are followed within this package and all that is not installed; of an installed package
    the version counts.
    """
    own, root = (name.partition(".")[0] for name in (__name__, made.__module__))
    waiting = {each.__module__ for each in getattr(made, "__mro__", (made,))}
    sources: dict[str, str] = {}
    if root != own and _is_installed(made.__module__):
        for each in packages_distributions().get(root, ()):  # none of Python itself
            sources[each] = version(each)
    while waiting:
        name = waiting.pop()
        followed = name.partition(".")[0] == own or not _is_installed(name)
        if followed and (source := _source(name)) is not None:
            sources[name] = source
            waiting |= _imports(name) - sources.keys()
    whole = "".join(sources[name] for name in sorted(sources))
    return hashlib.sha256(whole.encode()).hexdigest()[:12]


def _is_installed(name: str) -> bool:
    """Whether a module is of Python itself or of an installed package."""
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is None or any(Path(file).is_relative_to(place) for place in INSTALLED):
        return True
    lent = any(Path(file).is_relative_to(place) for place in _lent_places())
    return lent and name.partition(".")[0] in packages_distributions()


@cache
def _lent_places() -> set[str]:
    """Where something was installed outside the environment: for one user, or by PYTHONPATH."""
    return {place for place in sys.path if any(Path(place).glob("*.dist-info"))}


@cache  # as it was when it was first asked for: whoever edits it later does not change this process
def _source(name: str) -> str | None:
    """The source of a module that has one."""
    file = getattr(sys.modules.get(name), "__file__", None) or ""
    return Path(file).read_text() if file.endswith(".py") else None


@cache
def _imports(name: str) -> frozenset[str]:
    """The names of modules that a module with a source imports, and of what might be one."""
    own, found = sys.modules[name].__package__ or "", set[str]()
    for node in ast.walk(ast.parse(_source(name) or "")):
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            written = "." * node.level + (node.module or "")
            if node.level and not own:
                continue  # a script, where such an import cannot succeed
            origin = resolve_name(written, own) if node.level else written
            found |= {origin, *(f"{origin}.{each.name}" for each in node.names)}
    return frozenset(found)


def _digest(path: Path) -> str:
    if not path.is_file():
        raise UserError(
            f"baseline.checkpoint={path} is not a file; give a state dict (.safetensors, .pt)."
        )
    return hashlib.sha256(path.read_bytes()).hexdigest()


for _name in [each for each in sys.modules if each.partition(".")[0] == __name__.partition(".")[0]]:
    _source(_name)  # as it was imported
