"""Errors for models that cannot be traced: the line of their code, and what to do instead."""

import inspect
import sysconfig
import traceback
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from pruning_lab.errors import UserError
from pruning_lab.runtime.inputs import Inputs, call


class UntraceableError(UserError):
    """The model's forward cannot be traced, for example because it branches on the data."""


def untraceable(model: nn.Module, reason: object) -> UntraceableError:
    """Return the error for a model whose units cannot be followed, with what to do instead.

    If ``reason`` is an exception, the message names the line of the user's code that raised it.
    """
    return UntraceableError(
        f"{type(model).__name__} cannot be traced: {told(reason)}. {_what_to_do(model, reason)}"
        "To prune, you may also name the modules that read a layer's units yourself: "
        "prune_model(layer, indices, cascading_modules=[...])."
    )


def told(reason: object) -> str:
    """Return a reason as text; for an exception with the line of the user's code that raised it."""
    why = str(reason).rstrip(". ") or type(reason).__name__
    line = _line(reason) if isinstance(reason, BaseException) else None
    return why if line is None else f"{why} ({line})"


def _what_to_do(model: nn.Module, reason: object) -> str:
    children = list(model.named_children())
    tensors = [*model.parameters(recurse=False), *model.buffers(recurse=False)]
    if len(children) == 1 and not tensors and list(children[0][1].children()):
        return f"If it only wraps its .{children[0][0]}, give that instead. "
    if "is not a member of this module" in str(reason) or "not installed as" in str(reason):
        return "Layers in a Python list are not part of a model: put them in an nn.ModuleList. "
    if isinstance(reason, BaseException) and _line(reason):
        return "Move this line into a module of its own, which is then traced as one operation. "
    return ""


PACKAGES = (Path(torch.__file__).parent, Path(__file__).parents[1])
STDLIB = Path(sysconfig.get_path("stdlib"))


def _line(error: BaseException) -> str | None:
    """Return file, line and text of the innermost frame of an exception in the user's code.

    That is code outside of torch, this package and Python's standard library.
    """
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        of_python = path.is_relative_to(STDLIB) and "site-packages" not in path.parts
        generated = frame.filename.startswith("<")
        if not (generated or of_python or any(map(path.is_relative_to, PACKAGES))):
            return f"{path.name}, line {frame.lineno}: `{frame.line}`"
    return None


def check_initialised(model: nn.Module) -> None:
    """Raise UserError for a model whose parameters get their shapes in its first call."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise UserError(f"'{name}' has no shape yet. Call the model with a batch first.")


def check_takes(model: nn.Module, inputs: Inputs) -> None:
    """Raise UserError for a model that cannot be called with these inputs."""
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):  # compiled code has no signature
        return
    try:
        call(signature.bind, inputs)
    except TypeError as error:
        raise UserError(
            f"{type(model).__name__}.forward{signature} cannot be called with "
            f"{_described(inputs)}, all that it gets: {error}. Give the other arguments defaults, "
            "or wrap the model in a module whose forward passes them on."
        ) from error


def _described(inputs: Inputs) -> str:
    if isinstance(inputs, Mapping):
        return f"the named arguments {', '.join(map(str, inputs))}"
    return f"{len(inputs)} arguments" if isinstance(inputs, tuple | list) else "one tensor"
