"""A model that is looked at for a while: in eval mode, uncompiled, and afterwards as it was."""

import copy
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards every module has its own mode back."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def uncompiled() -> Iterator[None]:
    """Code that torch.compile made runs as it was written: compiled code does not see new hooks."""
    dynamo = sys.modules.get("torch._dynamo")
    with ExitStack() as stack:
        if dynamo is not None:  # else nothing is compiled
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(dynamo.config.patch(error_on_nested_fx_trace=False))
        yield


@contextmanager
def state_kept(model: nn.Module) -> Iterator[None]:
    """Put back what the model's code writes inside: attributes, plain containers, buffers.

    Parameters keep what is written to them.
    """
    modules = list(model.modules())
    attributes = [dict(vars(module)) for module in modules]
    values = [value for own in attributes for value in own.values()]
    containers = {id(v): (v, copy.copy(v)) for v in values if type(v) in (dict, list, set)}
    tensors = {id(v): v for v in (*model.buffers(), *values) if isinstance(v, torch.Tensor)}
    before = [(tensor, tensor.detach().clone()) for tensor in tensors.values()]
    try:
        yield
    finally:
        for module, own in zip(modules, attributes, strict=True):
            vars(module).clear()
            vars(module).update(own)
        for container, content in containers.values():
            _refill(container, content)
        for tensor, content in before:
            if not tensor.is_meta and not torch.equal(tensor, content):
                tensor.data.copy_(content)


def _refill(container: Any, content: Any) -> None:
    container.clear()
    (container.extend if isinstance(container, list) else container.update)(content)
