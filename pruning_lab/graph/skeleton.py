"""Copy a model's modules and shapes, without its data."""

import copy
from typing import Any

import torch
from torch import nn

from pruning_lab.graph.added_code import PLAIN_TENSORS, is_compiled
from pruning_lab.graph.refusals import untraceable


def skeleton(model: nn.Module) -> nn.Module:
    """Return a copy of a model on the meta device, without data and without code added to it.

    Raises UntraceableError for a model that cannot be copied.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                memo[id(tensor)] = _empty(tensor)
        for name, value in vars(module).items():
            if isinstance(value, torch.Tensor):
                memo[id(value)] = value.detach().to("meta")
            if name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called")):
                memo[id(value)] = type(value)()
    try:
        bones = copy.deepcopy(model, memo)
    except Exception as error:  # attributes of the user's modules may refuse to be copied
        raise untraceable(model, f"it cannot be copied, {error}") from error
    for module in bones.modules():
        if is_compiled(module):
            vars(module)["forward"] = module._orig_mod
            continue
        forward = vars(module).get("forward")
        if getattr(forward, "__self__", None) is not module:
            vars(module).pop("forward", None)
    return bones


def _empty(tensor: torch.Tensor) -> torch.Tensor:
    """Return a parameter or buffer of the same shape, without data."""
    if type(tensor) in PLAIN_TENSORS:
        empty = tensor.detach().to("meta")
    else:
        with torch._C.DisableTorchFunction():
            empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, tensor.requires_grad)
    return empty
