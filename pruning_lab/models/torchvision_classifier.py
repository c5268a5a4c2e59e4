"""Build any classifier of torchvision by name."""

import difflib
from collections.abc import Sequence

import torch
import torchvision
from torch import nn

from pruning_lab.errors import UserError
from pruning_lab.models.attention import with_prunable_heads
from pruning_lab.runtime.model_state import evaluating

WITH_HEADS = ("googlenet", "inception_v3")
"""Models with auxiliary heads, which run only in training; they are left out here."""
TRANSFORMERS = "vit_"
"""Name prefix of models that are built for one image size; the names end with the patch size."""


def classifier(
    name: str,
    weights: str | None = None,
    num_classes: int = 1000,
    in_channels: int = 3,
    input_size: Sequence[int] | None = None,
    prunable_heads: bool = False,
) -> nn.Module:
    """Return torchvision's model ``name``, untrained or with ``weights`` (``DEFAULT`` or a name).

    ``input_size``, (channels, height, width), is checked; a vision transformer without pretrained
    weights is built for it (default: torchvision's 224x224 pixels). Pretrained models keep their
    classifier: the data set must have their classes and three channels. With ``prunable_heads``
    attention is replaced by modules of the same weights whose heads can be pruned (ViT, Swin).
    Raises UserError for an unknown name, unknown weights, weights that do not fit, or a size that
    the model does not take.
    """
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        close = difflib.get_close_matches(str(name), known, 5, 0.4) or known[:5]
        raise UserError(
            f"model.name={name} is not one of torchvision's {len(known)} classifiers. Close: "
            f"{', '.join(close)}."
        )
    pixels = None if input_size is None else tuple(input_size[1:])
    if weights is None:
        model = _untrained(name, num_classes, in_channels, pixels)
    else:
        model = _pretrained(name, weights, num_classes, in_channels, pixels)
    if pixels is not None:
        _check_takes(model, name, in_channels, pixels)
    return with_prunable_heads(model) if prunable_heads else model


def _untrained(
    name: str, num_classes: int, in_channels: int, pixels: tuple[int, ...] | None
) -> nn.Module:
    extra: dict[str, bool | int] = {}
    if name in WITH_HEADS:
        extra = {"init_weights": True, "aux_logits": False}
    if pixels is not None and name.startswith(TRANSFORMERS):
        extra["image_size"] = _side_in_patches(name, pixels)
    model = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **extra)
    if in_channels != 3:
        _replace_first_convolution(model, in_channels)
    return model


def _pretrained(
    name: str, weights: str, num_classes: int, in_channels: int, pixels: tuple[int, ...] | None
) -> nn.Module:
    choices = torchvision.models.get_model_weights(name)
    if weights not in choices.__members__:
        raise UserError(
            f"model.weights={weights} is not known for {name}; choose one of "
            f"{', '.join(choices.__members__)}."
        )
    chosen = choices[weights]
    classes = len(chosen.meta["categories"])
    if (num_classes, in_channels) != (classes, 3):
        raise UserError(
            f"{chosen} knows {classes} classes of images with 3 channels, the data set has "
            f"{num_classes} classes and {in_channels} channels. Use a data set that fits "
            "(dataset=image_folder), or model.weights=null to train from scratch."
        )
    if name.startswith(TRANSFORMERS) and pixels not in (None, chosen.meta["min_size"]):
        raise _wrong_size(str(chosen), pixels, chosen.meta["min_size"])
    try:
        extra = {"aux_logits": False} if name in WITH_HEADS else {}
        return torchvision.models.get_model(name, weights=chosen, **extra)
    except (OSError, RuntimeError) as error:  # no network, or an incomplete file
        raise UserError(
            f"{chosen} cannot be downloaded ({error}). Put {chosen.url.rsplit('/', 1)[-1]} into "
            "torch's hub folder (torch.hub.get_dir()/checkpoints)."
        ) from error


def _side_in_patches(name: str, pixels: tuple[int, ...]) -> int:
    """Return the side of the images; UserError unless they are square and divide into patches."""
    patch = int(name.rpartition("_")[2])
    height, width = pixels
    if height != width or height % patch:
        side = -(-max(pixels) // patch) * patch
        raise UserError(
            f"{name} cuts square images into patches of {patch}x{patch} pixels, these have "
            f"{height}x{width}. Use images whose side is a multiple of {patch} (dataset.size="
            f"{side}, where the data set has a size) or another model."
        )
    return height


def _check_takes(model: nn.Module, name: str, in_channels: int, pixels: tuple[int, ...]) -> None:
    """Raise UserError unless the model takes images of this size, found by running it once."""
    try:
        with evaluating(model), torch.no_grad():
            model(torch.zeros(1, in_channels, *pixels))
    except RuntimeError as error:
        takes = torchvision.models.get_model_weights(name).DEFAULT.meta["min_size"]
        raise _wrong_size(name, pixels, takes) from error


def _wrong_size(name: str, pixels: tuple[int, ...], takes: tuple[int, int]) -> UserError:
    (height, width), (side, _) = pixels, takes
    return UserError(
        f"{name} does not take images of {height}x{width} pixels, but those of {side}x{side}. Use "
        f"such images (dataset.size={side}, where the data set has a size) or another model."
    )


def _replace_first_convolution(model: nn.Module, in_channels: int) -> None:
    name, first = next(
        (name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d)
    )
    settings = ("out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
    replacement = nn.Conv2d(
        in_channels, **{key: getattr(first, key) for key in settings}, bias=first.bias is not None
    )
    model.set_submodule(name, replacement)
