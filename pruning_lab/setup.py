"""From a configuration to the objects of an experiment; what is impossible is refused here."""

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import MISSING, DictConfig, OmegaConf
from torch import nn

from pruning_lab import ranks
from pruning_lab.checkpoint import all_tensors
from pruning_lab.datasets import Splits
from pruning_lab.datasets.samples import TWICE
from pruning_lab.errors import (
    UserError,
    check_choice,
    check_count,
    check_seed,
    check_switch,
    check_text,
)
from pruning_lab.modes import evaluating
from pruning_lab.random_streams import seed_all, streams_kept

MOST_THREADS = 1024
"""From some thousands on torch ends the process without a word."""

KEEP = ("none", "last", "all")
"""Which pruned models stay: none, the last, or that after every step."""

ROUNDING = 1e-3
"""By what share of the largest output one image's may differ with the size of its batch."""

SECTIONS = ("seeds", "baseline", "after_cut", "controls", "scoring", "tracking")


def build(config: DictConfig, group: str = "", kind: type = object, **arguments: Any) -> Any:
    """The object that ``config._target_`` describes; the reason of a refusal is handed on.

    Lists and mappings of the configuration arrive as Python's own, ``arguments`` as they are.
    ``group`` says whose settings they are where the refusal itself does not. Raises UserError for
    anything but a ``kind``, too.
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
        made = instantiate(config, _convert_=convert, _partial_=True)  # arguments pass it by
        _check_settings(made, group, arguments)
        if not config.get("_partial_", False):
            made = made(**arguments)
    except UserError as error:
        message = str(error)
        raise UserError(message if message.startswith(group) else f"{group}: {message}") from None
    except Exception as error:  # importing and calling a user's code may raise anything
        cause = error.__cause__ if isinstance(error, InstantiationException) else error
        if isinstance(cause, UserError):  # of an object within
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
    """Refuse settings that what is built does not take, and name those that it takes."""
    try:
        parameters = inspect.signature(made.func).parameters
    except (TypeError, ValueError):  # some built-in functions have no signature
        return
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()):
        return
    unknown = [name for name in made.keywords if name not in parameters]
    if unknown:
        known = sorted(set(parameters) - set(arguments))
        raise UserError(
            f"{group}.{unknown[0]} is not a setting of {made.func.__qualname__}, which has "
            f"{', '.join(known) or 'none'}."
        )


def find_target(target: str, group: str) -> Any:
    """The class or function that ``_target_`` names in the settings of a group."""
    if target == MISSING:
        raise UserError(
            f"{group}._target_ is missing: name your class, {group}._target_=their_package.Net."
        )
    try:
        found = get_object(target)
    except Exception as error:  # importing a user's module may raise anything
        raise UserError(f"{group}._target_={target} cannot be imported: {error}") from error
    if not callable(found):
        kind = type(found).__name__
        raise UserError(f"{group}._target_={target} is a {kind}; name a class or a function.")
    return found


def build_data(config: DictConfig) -> Splits:
    """The data set; code that draws at random while it is built draws the same each time.

    Raises UserError where a second one of the same settings has other samples.
    """
    target = str(config.get("_target_")) if isinstance(config, DictConfig) else ""
    with streams_kept():
        seed_all(0)
        splits: Splits = build(config, "dataset", Splits)
        if target.startswith("pruning_lab."):
            return splits
        first = splits.fingerprint(TWICE)
        del splits  # two of them may be too large
        seed_all(0)
        again: Splits = build(config, "dataset", Splits)
        if again.fingerprint(TWICE) != first:
            raise UserError(
                f"dataset._target_={target} gives other samples each time that it is built: no "
                "result could be repeated. Draw from numpy's, torch's or Python's own stream, or "
                "from np.random.default_rng(seed), and sort what a folder lists."
            )
    return again


def build_model(config: DictConfig, splits: Splits) -> nn.Module:
    """The model, told of the data set what its signature asks for."""
    known = {
        "num_classes": splits.num_classes,
        "in_channels": splits.in_channels,
        "input_size": splits.input_size,
    }
    signature = inspect.signature(find_target(plain(config)["_target_"], "model"))
    missing = {k: v for k, v in known.items() if k in signature.parameters and k not in config}
    try:
        model: nn.Module = build(config, "model", nn.Module, **missing)
    except UserError as error:
        if "required positional argument" not in str(error):
            raise
        raise UserError(
            f"{error} It is given {', '.join(known)} as far as it names them; give what else it "
            "needs on the command line, +model.width=8 for example."
        ) from error
    check_outputs(model, splits)
    return model


def check_outputs(model: nn.Module, splits: Splits) -> None:
    """UserError unless the model makes one number a class out of each image by itself."""
    names = set(all_tensors(model))
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(2, *splits.input_size, generator=draw).to(device)
    output = _output(model, torch.zeros_like(noise))
    shape = _shape(output)
    if shape != (2, splits.num_classes):
        raise UserError(
            f"For two images the model gives {shape}; for a data set of {splits.num_classes} "
            f"classes it must give a tensor of shape (2, {splits.num_classes})."
        )
    if not (output.is_meta or output.isfinite().all()):
        raise UserError(
            f"For black images the model gives {output[0].tolist()}: it cannot be trained from "
            "there. Are its weights finite, and drawn?"
        )
    if made := sorted(set(all_tensors(model)) - names):
        raise UserError(
            f"The model makes parameters or buffers in its forward ({', '.join(made)}): a new "
            "model could not take the weights that are kept on the disk. Make them in __init__."
        )
    alone = _output(model, noise[:1])
    if _shape(alone) != (1, splits.num_classes):
        raise UserError(
            f"For one image the model gives {_shape(alone)}; it must give a tensor of shape "
            f"(1, {splits.num_classes}), since the last batch may be one image. Does it squeeze() "
            "the batch away? flatten(1) and squeeze((2, 3)) keep it."
        )
    _check_rows(model, noise, alone)
    _check_logits(_output(model, noise))


def _check_logits(output: torch.Tensor) -> None:
    """UserError for probabilities: the cross-entropy takes the softmax itself."""
    if output.is_meta or output.shape[1] < 2 or (output < 0).any():
        return
    if torch.allclose(output.sum(1), torch.ones_like(output[:, 0]), atol=1e-3):
        raise UserError(
            "The model gives probabilities: the numbers of each image are not below 0 and add up "
            "to 1. The loss is the cross-entropy, which takes the softmax itself: return what goes "
            "into the softmax."
        )


def _check_rows(model: nn.Module, images: torch.Tensor, alone: torch.Tensor) -> None:
    """UserError where the first image's output depends on the second.

    Nothing is said of models that draw at random even in eval mode.
    """
    both, again = _output(model, images), _output(model, images)
    if both.is_meta or not torch.equal(both, again):
        return
    apart = (both[:1] - alone).abs().max().item()
    if apart > ROUNDING * both.abs().max().item():
        raise UserError(
            f"The model's output for an image depends on the others in its batch, also in eval "
            f"mode: it differs by {apart:.2g}. No image has a result of its own then. Does a layer "
            "take statistics from the batch (track_running_stats=False), or a reshape or a mean "
            "mix its images?"
        )


def _output(model: nn.Module, x: torch.Tensor) -> Any:
    """What the model gives in eval mode; the random streams are left alone."""
    try:
        with evaluating(model), torch.no_grad(), streams_kept([x.device]):
            return model(x)
    except Exception as error:  # a user's forward may raise anything
        raise UserError(
            f"The model cannot take the data set's images, {tuple(x.shape)}: {error}"
        ) from error


def _shape(output: Any) -> tuple[int, ...] | str:
    return tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__


def find_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is a GPU when there is one, each rank's own."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if ranks.count() > 1 and name.startswith("cuda"):
        if name != "cuda":
            raise UserError(f"device={name} is not possible for several processes: give cuda.")
        name = f"cuda:{ranks.local()}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        raise UserError(
            f"device={name} is not available on this machine. Use auto or cpu."
        ) from error
    return device


def spread(device: str, job: int) -> str:
    """The device of a sweep's job of this number: ``auto`` gives them the GPUs in turn."""
    count = torch.cuda.device_count()
    return f"cuda:{job % count}" if device == "auto" and count > 1 else device


def check_numbers(config: DictConfig) -> None:
    """Refuse what would only fail when it is used, after hours perhaps."""
    for name in SECTIONS:
        if not isinstance(config[name], DictConfig):
            raise UserError(f"{name}={config[name]} is not possible: set its keys one by one.")
    for name, seed in config.seeds.items():
        check_seed(f"seeds.{name}", seed)
    check_seed("seed", config.seed)
    check_count("scoring.batch_size", config.scoring.batch_size)
    check_count("after_cut.recalibrate", config.after_cut.recalibrate, 0)
    switches = {f"controls.{name}": value for name, value in config.controls.items()}
    for name in ("rescale_dropout", "undo_harm"):
        switches[f"after_cut.{name}"] = config.after_cut[name]
    switches |= {"plan": config.plan, "force": config.force}
    for name, value in switches.items():
        check_switch(name, value)
    if config.threads is not None:
        check_count("threads", config.threads, most=MOST_THREADS)
    check_text("tracking.uri", config.tracking.uri, "sqlite:///mlflow.db")
    check_text("tracking.experiment", config.tracking.experiment, "pruning_lab")
    check_text("baseline.folder", config.baseline.folder, "baselines")
    check_text("checkpoints", config.checkpoints, "checkpoints")
    check_choice("keep", config.keep, KEEP)
    if config.baseline.checkpoint is not None:
        check_text("baseline.checkpoint", config.baseline.checkpoint, "network.safetensors")
    _check_places(config)


def _check_places(config: DictConfig) -> None:
    """UserError for a ``~``, which would be a folder of that name."""
    places = {key: config.baseline[key] for key in ("folder", "checkpoint")}
    places = {f"baseline.{key}": place for key, place in places.items()}
    places["checkpoints"] = config.checkpoints
    if isinstance(config.dataset, DictConfig) and "pruning_lab." in str(config.dataset._target_):
        places["dataset.root"] = config.dataset.get("root")  # a class of one's own may expand it
    for name, place in places.items():
        if str(place).startswith("~"):
            raise UserError(
                f"{name}={place} is not possible: ~ is not the home folder here. Write the folder "
                "in full, or begin with ${oc.env:HOME}."
            )


def plain(config: DictConfig) -> dict[str, Any]:
    """A configuration as plain, resolved dictionaries."""
    found = OmegaConf.to_container(config, resolve=True)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}
