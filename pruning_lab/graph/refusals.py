"""Why a model cannot be traced: the line of its code, and what to do instead."""

import inspect
import sysconfig
import traceback
from pathlib import Path

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from pruning_lab.errors import UserError


class UntraceableError(UserError):
    """The model's forward cannot be traced (its control flow depends on the data)."""


def untraceable(model: nn.Module, reason: object) -> UntraceableError:
    """The error for a model whose units cannot be followed, with what to do instead.

    An exception as ``reason`` tells the line of the user's code where it was raised.
    """
    return UntraceableError(
        f"{type(model).__name__} cannot be traced: {told(reason)}. {_what_to_do(model, reason)}"
        "To prune, you may also name the modules that read a layer's units yourself: "
        "prune_model(layer, indices, cascading_modules=[...])."
    )


def told(reason: object) -> str:
    """A reason in words; of an exception also the line of the user's code that raised it."""
    why = str(reason).rstrip(". ") or type(reason).__name__
    line = _line(reason) if isinstance(reason, BaseException) else None
    return why if line is None else f"{why} ({line})"


def _what_to_do(model: nn.Module, reason: object) -> str:
    inside = _inner(model)
    if inside is not None:
        return f"If it only wraps its .{inside}, give that instead. "
    if "is not a member of this module" in str(reason) or "not installed as" in str(reason):
        return "Layers in a Python list are not part of a model: put them in an nn.ModuleList. "
    if isinstance(reason, BaseException) and _line(reason):
        return "Move this line into a module of its own, which is kept whole. "
    return ""


def _inner(model: nn.Module) -> str | None:
    """The name of the one network that has all that ``model`` has, which may be a wrapper."""
    children = list(model.named_children())
    own = [*model.parameters(recurse=False), *model.buffers(recurse=False)]
    if len(children) != 1 or own or not list(children[0][1].children()):
        return None
    return children[0][0]


PLACES = (
    Path(torch.__file__).parent,
    Path(__file__).parents[1],
    Path(sysconfig.get_path("stdlib")),
)
"""Where the code is nobody's model: torch, this package, Python's own library."""


def _line(error: BaseException) -> str | None:
    """File, line and text of the innermost frame of an exception that is the user's."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        installed = "site-packages" in path.parts
        *others, library = PLACES
        if frame.filename.startswith("<") or any(map(path.is_relative_to, others)):
            continue
        if installed or not path.is_relative_to(library):
            return f"{path.name}, line {frame.lineno}: `{frame.line}`"
    return None


def check_initialised(model: nn.Module) -> None:
    """UserError for a model whose parameters get their shapes in its first call."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise UserError(f"'{name}' has no shape yet. Call the model with a batch first.")


def check_takes_one_tensor(model: nn.Module) -> None:
    """UserError for a model that cannot be called with one tensor alone."""
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):  # compiled code tells nothing of its arguments
        return
    try:
        signature.bind(None)
    except TypeError as error:
        raise UserError(
            f"{type(model).__name__}.forward{signature} cannot be called with one tensor, which is "
            f"all that a model is given: {error}. Give the other arguments defaults, or wrap the "
            "model in a module whose forward(self, x) passes them on."
        ) from error
