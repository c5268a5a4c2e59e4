"""Any classifier of torchvision, by name."""

import difflib

import torchvision
from torch import nn

from pruning_lab.errors import UserError

WITH_HEADS = ("googlenet", "inception_v3")
"""These have auxiliary heads, which only training runs; here they are left out."""
NO_HEADS = {"aux_logits": False}


def classifier(
    name: str, weights: str | None = None, num_classes: int = 1000, in_channels: int = 3
) -> nn.Module:
    """torchvision's model ``name``, untrained, or with ``weights`` (``DEFAULT`` or their name).

    Pretrained weights keep their head: the data set must have their classes and three channels.
    Raises UserError for an unknown name, unknown weights, or weights that do not fit.
    """
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        close = difflib.get_close_matches(name, known, 5, 0.4) or known[:5]
        raise UserError(
            f"model.name={name} is not one of torchvision's {len(known)} classifiers. Close: "
            f"{', '.join(close)}."
        )
    if weights is not None:
        return _pretrained(name, weights, num_classes, in_channels)
    extra: dict[str, bool] = {"init_weights": True} | NO_HEADS if name in WITH_HEADS else {}
    model = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **extra)
    if in_channels != 3:
        _replace_first_convolution(model, in_channels)
    return model


def _pretrained(name: str, weights: str, num_classes: int, in_channels: int) -> nn.Module:
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
    try:
        extra = NO_HEADS if name in WITH_HEADS else {}
        return torchvision.models.get_model(name, weights=chosen, **extra)
    except (OSError, RuntimeError) as error:  # no network, or a file that is not the whole one
        raise UserError(
            f"{chosen} cannot be downloaded ({error}). Put {chosen.url.rsplit('/', 1)[-1]} into "
            "torch's hub folder (torch.hub.get_dir()/checkpoints)."
        ) from error


def _replace_first_convolution(model: nn.Module, in_channels: int) -> None:
    name, first = next(
        (name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d)
    )
    settings = ("out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
    replacement = nn.Conv2d(
        in_channels, **{key: getattr(first, key) for key in settings}, bias=first.bias is not None
    )
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, replacement)
