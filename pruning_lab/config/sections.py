"""Plain settings of a run as typed sections, which raise UserError for impossible values."""

import re
from dataclasses import dataclass, fields
from typing import Any

from omegaconf import DictConfig

from pruning_lab.errors import (
    UserError,
    check_choice,
    check_count,
    check_seed,
    check_switch,
    check_text,
)

MOST_THREADS = 1024
"""With several thousand threads torch ends the process without an error message."""

KEEP = ("none", "last", "all")
"""Pruned models to keep: none, the last, or all (one after every step)."""


@dataclass(frozen=True)
class Names:
    """The choices of the configuration groups that runs are grouped by."""

    model: str
    dataset: str
    metric: str
    schedule: str
    finetune: str


@dataclass(frozen=True)
class Seeds:
    """Seeds of the initial weights, of the order of the training data, and of scores."""

    init: int
    order: int
    score: int

    def __post_init__(self) -> None:
        for name, seed in vars(self).items():
            check_seed(f"seeds.{name}", seed)


@dataclass(frozen=True)
class AfterCut:
    """Treatment of a network after each cut, besides fine-tuning."""

    recalibrate: int
    rescale_dropout: bool
    undo_harm: bool

    def __post_init__(self) -> None:
        check_count("after_cut.recalibrate", self.recalibrate, 0)
        check_switch("after_cut.rescale_dropout", self.rescale_dropout)
        check_switch("after_cut.undo_harm", self.undo_harm)


@dataclass(frozen=True)
class Controls:
    """Control runs requested besides the main pruning run; true if there are any."""

    untuned: bool
    stale: bool
    scratch: bool

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            check_switch(f"controls.{name}", value)

    def __bool__(self) -> bool:
        return self.untuned or self.stale or self.scratch


@dataclass(frozen=True)
class Tracking:
    """The MLflow store and experiment that runs are recorded in."""

    uri: str
    experiment: str

    def __post_init__(self) -> None:
        check_text("tracking.uri", self.uri, "sqlite:///mlflow.db")
        check_text("tracking.experiment", self.experiment, "pruning_lab")


@dataclass(frozen=True)
class Settings:
    """Settings of a run, besides those of the objects that it builds.

    ``given_weights``: the baseline is not trained here; its weights come from a file or with the
    model. ``folder`` holds the baselines.
    """

    seed: int
    seeds: Seeds
    device: str
    threads: int | None
    dry_run: bool
    force: bool
    keep: str
    checkpoints: str
    folder: str
    checkpoint: str | None
    given_weights: bool
    after_cut: AfterCut
    controls: Controls
    batch_size: int
    tracking: Tracking

    def __post_init__(self) -> None:
        check_seed("seed", self.seed)
        check_count("scoring.batch_size", self.batch_size)
        check_switch("dry_run", self.dry_run)
        check_switch("force", self.force)
        if self.threads is not None:
            check_count("threads", self.threads, most=MOST_THREADS)
        check_text("baseline.folder", self.folder, "baselines")
        check_text("checkpoints", self.checkpoints, "checkpoints")
        check_choice("keep", self.keep, KEEP)
        if self.checkpoint is not None:
            check_text("baseline.checkpoint", self.checkpoint, "network.safetensors")


SECTIONS = {"seeds": Seeds, "after_cut": AfterCut, "controls": Controls, "tracking": Tracking}
"""Sections of the configuration with a type of their own."""

PLAIN = ("seed", "device", "threads", "dry_run", "force", "keep", "checkpoints")
"""Settings that are in no section."""


def read_settings(config: DictConfig) -> Settings:
    """Read and check a configuration's plain settings; raise UserError for the first error."""
    for name in (*SECTIONS, "baseline", "scoring"):
        if not isinstance(config[name], DictConfig):
            raise UserError(f"{name}={config[name]} is not possible: set its keys one by one.")
    weights = isinstance(config.model, DictConfig) and config.model.get("weights")
    values: dict[str, Any] = {name: config[name] for name in PLAIN}
    for name, kind in SECTIONS.items():
        values[name] = kind(**{field.name: config[name][field.name] for field in fields(kind)})
    settings = Settings(
        **values,
        folder=config.baseline.folder,
        checkpoint=config.baseline.checkpoint,
        given_weights=config.baseline.checkpoint is not None or bool(weights),
        batch_size=config.scoring.batch_size,
    )
    _check_places(config)
    return settings


def _check_places(config: DictConfig) -> None:
    """Raise UserError for a path that begins with ``~``: it would name a folder called ``~``."""
    places = {f"baseline.{key}": config.baseline[key] for key in ("folder", "checkpoint")}
    places["checkpoints"] = config.checkpoints
    if isinstance(config.dataset, DictConfig) and "pruning_lab." in str(config.dataset._target_):
        places["dataset.root"] = config.dataset.get("root")  # a user's class may expand it
    for name, place in places.items():
        if str(place).startswith("~"):
            raise UserError(
                f"{name}={place} is not possible: ~ is not the home folder here. Write the folder "
                "in full, or begin with ${oc.env:HOME}."
            )


def shown(config: DictConfig) -> DictConfig:
    """Return a copy with the password of the tracking store hidden."""
    copy = config.copy()
    copy.tracking.uri = without_password(config.tracking.uri)
    return copy


def without_password(text: str) -> str:
    """Return the text with the password of every URL in it hidden."""
    text = re.sub(r"://([^/@:\s]*):\S+@", r"://\1:***@", text)
    return re.sub(r"([?&]password=)[^&\s]+", r"\1***", text)
