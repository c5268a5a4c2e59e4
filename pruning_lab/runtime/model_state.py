"""Run a model in eval mode, uncompiled or without lasting changes; read and set its tensors."""

import copy
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Set eval mode inside the block; restore the mode of every module afterwards."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run compiled modules uncompiled inside the block: compiled code does not see new hooks."""
    dynamo = sys.modules.get("torch._dynamo")
    with ExitStack() as stack:
        if dynamo is not None:  # otherwise nothing is compiled
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(dynamo.config.patch(error_on_nested_fx_trace=False))
        yield


@contextmanager
def state_kept(model: nn.Module) -> Iterator[None]:
    """Restore attributes, plain containers and buffers after the block, but not parameters."""
    modules = list(model.modules())
    attributes = [dict(vars(module)) for module in modules]
    values = [value for saved in attributes for value in saved.values()]
    containers = {id(v): (v, copy.copy(v)) for v in values if type(v) in (dict, list, set)}
    tensors = {id(v): v for v in (*model.buffers(), *values) if isinstance(v, torch.Tensor)}
    before = [(tensor, tensor.detach().clone()) for tensor in tensors.values()]
    try:
        yield
    finally:
        for module, saved in zip(modules, attributes, strict=True):
            vars(module).clear()
            vars(module).update(saved)
        for container, content in containers.values():
            container.clear()
            (container.extend if isinstance(container, list) else container.update)(content)
        for tensor, content in before:
            if not tensor.is_meta and not torch.equal(tensor, content):
                tensor.data.copy_(content)


@torch.no_grad()
def set_tensors(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Load a state dict and non-persistent buffers, as ``all_tensors`` returns them."""
    entries = model.state_dict()
    model.load_state_dict({key: state[key] for key in entries})
    for key, buffer in all_tensors(model).items():
        # an unchanged buffer is skipped: it may be expanded, and then cannot be written
        if key in state and key not in entries and not torch.equal(buffer.cpu(), state[key].cpu()):
            buffer.copy_(state[key])


def all_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the state dict and the non-persistent buffers (which pruning may slice) by name."""
    return dict(model.named_buffers(remove_duplicate=False)) | model.state_dict(keep_vars=True)
