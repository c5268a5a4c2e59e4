"""Name a result by a hash of everything that determines it.

Where data and results lie, how many jobs run at once and what is kept of a run determine nothing.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from pruning_lab.config.build import build, find_target, plain
from pruning_lab.config.sections import Settings, read_settings
from pruning_lab.datasets import Splits
from pruning_lab.errors import UserError
from pruning_lab.experiment.parts import build_data, build_model
from pruning_lab.experiment.pruning_run import prune
from pruning_lab.provenance.environment import working
from pruning_lab.provenance.inputs_read import Seen, inputs, look_at, watching
from pruning_lab.provenance.source_code import digest_of_program, remember
from pruning_lab.pruning.schedules import Schedule
from pruning_lab.runtime import distributed
from pruning_lab.runtime.device import find_device
from pruning_lab.runtime.random_streams import seed_all, streams_kept
from pruning_lab.tasks.task import Task
from pruning_lab.training.fit import fit
from pruning_lab.training.recipe import Training

Config = Mapping[str, Any]
"""A configuration as plain dictionaries."""

PLACES = ("root", "download", "debian_package")
"""Settings of a data set that say where it lies: what is there counts, by its fingerprint."""

METHOD = ("metric", "attributions", "schedule", "finetune", "after_cut", "controls", "scoring")
"""Configuration sections that say how a baseline is scored, pruned and recovered."""

TRAINING = "baseline.training"

ADDRESS = re.compile(" at 0x[0-9a-f]+")
"""Where an object lies in memory."""

THREADS = torch.get_num_threads()
"""As many as torch chooses; a job of a sweep must not inherit another job's."""


@dataclass(frozen=True)
class Job:
    """A configuration whose numbers are checked, with its data; its network is not built yet.

    ``training`` is that of the baseline, ``finetune`` the one after each cut. ``start`` determines
    the baseline, apart from its code; ``name`` is the identity of the whole run. What was read on
    the way, which no name tells, is in ``seen``; for the network and the data alone, in ``begun``.
    """

    settings: Settings
    device: torch.device
    threads: int
    task: Task
    splits: Splits
    schedule: Schedule
    training: Training
    finetune: Training
    start: dict[str, Any]
    name: str
    begun: Seen
    seen: Seen


@working()
def identify(config: DictConfig) -> Job:
    """Collect what determines the result of a configuration; builds the network to hash it."""
    checked = read_settings(config)
    device, threads = find_device(checked.device), checked.threads or THREADS
    settings = plain(config)
    with watching():  # what is read while the user's modules are imported
        for part in ("model", "dataset", "task"):
            list(_made(settings[part], part))
        task: Task = build(config.task, "task", Task)
    data, made = _text(settings, "dataset"), _text(settings, "model", "task")
    splits, samples = distributed.leader_first(lambda: _data(data))
    network, begun = distributed.leader_first(lambda: _network(made, checked.seeds.init, data))
    if begun.is_outdated():  # made for an earlier job of this process
        _data.cache_clear()
        _network.cache_clear()
        splits, samples = _data(data)
        network, begun = _network(made, checked.seeds.init, data)
    start = start_determinants(settings, samples, network, device, threads)
    with watching():
        for part in METHOD:
            list(_made(settings[part], part))
        schedule: Schedule = build(config.schedule, "schedule", Schedule)
        training: Training = build(config.baseline.training, TRAINING, Training)
        finetune: Training = build(config.finetune, "finetune", Training)
        # user code may set more than the settings say
        built = {"schedule": schedule, TRAINING: training, "finetune": finetune}
        described = {part: _described(made) for part, made in built.items()}
        start["fitted"] = described[TRAINING]
        name = identity(run_determinants(start, settings) | {"built": described})
    return Job(
        checked, device, threads, task, splits, schedule, training, finetune, start, name, begun,
        Seen(begun.answer),
    )  # fmt: skip


def _described(made: Any) -> str:
    """Return an object's attributes as text."""
    return ADDRESS.sub("", repr(sorted(vars(made).items())))


def _text(settings: Config, *parts: str) -> str:
    """Return parts of a configuration as text, by which what is built of them is cached."""
    return OmegaConf.to_yaml(OmegaConf.create({part: settings[part] for part in parts}))


@lru_cache(maxsize=1)  # jobs of a sweep mostly share their data
def _data(settings: str) -> tuple[Splits, str]:
    """Build the data set of these settings; return it with its fingerprint."""
    splits = build_data(OmegaConf.create(settings).dataset)
    return splits, splits.fingerprint()


@cache  # jobs of a sweep share their networks, too
def _network(settings: str, seed: int, data: str) -> tuple[str, Seen]:
    """Build the fresh network of these settings; return its hash, and what was read meanwhile."""
    config, splits = OmegaConf.create(settings), _data(data)[0]
    with streams_kept(), watching():
        model = fresh_model(config.model, splits, build(config.task, "task", Task), seed)
    x = torch.randn(8, *splits.input_size, generator=torch.Generator().manual_seed(0))
    answer = look_at(model, x).answer
    return digest_of_network(model), Seen(answer, inputs())


def fresh_model(config: DictConfig, splits: Splits, task: Task, seed: int) -> nn.Module:
    """The model of a configuration, its weights drawn by this seed."""
    seed_all(seed)
    return build_model(config, splits, task)


def digest_of_network(model: nn.Module) -> str:
    """A hash of a network: kinds, modes and settings of its modules, and the tensors they hold.

    Of a tensor also counts whether it is trained (``requires_grad``).
    """
    digest = hashlib.sha256()
    for name, module in model.named_modules():
        kind = type(module)
        shown = module.extra_repr() if kind.__module__.startswith("torch.") else ""
        settings = f"{module.training} {ADDRESS.sub('', shown)}"
        digest.update(f"{name} {kind.__qualname__} {settings}".encode())
        held = {**module._parameters, **module._buffers, **vars(module)}
        for key, value in sorted(held.items(), key=lambda item: item[0]):
            if isinstance(value, torch.Tensor):
                about = f"{value.dtype} {tuple(value.shape)} {value.requires_grad}"
                digest.update(f"{name}.{key} {about}".encode())
                digest.update(_bytes_of(value))
    return digest.hexdigest()[:12]


def _bytes_of(tensor: torch.Tensor) -> bytes:
    """The numbers of a tensor; nothing of one that has none."""
    if tensor.is_meta:
        return b""
    dense = tensor.detach().cpu().to_dense() if tensor.is_sparse else tensor.detach().cpu()
    return dense.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def identity(determinants: Any) -> str:
    """Twelve hex digits that name whatever the determinants determine (sha256 of their JSON)."""
    text = json.dumps(determinants, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def start_determinants(
    config: Config, samples: str, network: str, device: torch.device, threads: int
) -> dict[str, Any]:
    """Return what determines the baseline: model, task, data, training, and the arithmetic."""
    checkpoint = config["baseline"]["checkpoint"]
    ways = distributed.count()  # shares of a batch round otherwise than the whole
    return {
        "model": config["model"],
        "task": config["task"],
        "dataset": {k: v for k, v in config["dataset"].items() if k not in PLACES},
        "samples": samples,
        "network": network,
        "versions": {name: version(name) for name in ("torch", "torchvision", "numpy", "pillow")},
        "training": config["baseline"]["training"] if checkpoint is None else None,
        "checkpoint": None if checkpoint is None else _digest(Path(checkpoint)),
        "seeds": {key: config["seeds"][key] for key in ("init", "order")},
        "threads": threads,
        "device": device.type,
        **({"processes": ways} if ways > 1 else {}),
    }


def baseline_determinants(start: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """Return what determines the trained baseline, its code included.

    Of the code, the classes of the model's modules count, with all that they import, and all that
    the training imports.
    """
    kinds: set[Any] = {type(module) for module in model.modules()}
    code = {"model": sorted(map(digest_of_program, kinds)), "training": digest_of_program(fit)}
    return {**start, "code": code}


def run_determinants(start: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """Return what determines the result of a whole run.

    Of the code, all counts that what the configuration names imports, and the pruning of a track.
    """
    parts = ("model", "task", "dataset", "baseline", *METHOD)
    made = [each for part in parts for each in _made(config[part], part)]
    code = {name: digest_of_program(each, target) for name, target, each in made}
    return {
        **start,
        **{key: config[key] for key in METHOD},
        "seeds": config["seeds"],
        "code": code | {"track": digest_of_program(prune)},
    }


def _made(part: Any, group: str) -> Iterator[tuple[str, str, Any]]:
    """Yield the place, name and value of every ``_target_`` in a part of a configuration."""
    if isinstance(part, Mapping):
        if "_target_" in part:
            yield group, part["_target_"], find_target(part["_target_"], group)
        for key, value in part.items():
            yield from _made(value, f"{group}.{key}")
    elif isinstance(part, list):
        for number, value in enumerate(part):
            yield from _made(value, f"{group}.{number}")


def _digest(path: Path) -> str:
    if not path.is_file():
        raise UserError(
            f"baseline.checkpoint={path} is not a file; give a state dict (.safetensors, .pt)."
        )
    return hashlib.sha256(path.read_bytes()).hexdigest()


remember()
