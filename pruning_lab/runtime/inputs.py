"""Split, select, move and copy the inputs of a model, and its targets.

Inputs are a tensor, several of them (a tuple or a list), or named arguments (a dictionary). The
first dimension of every tensor counts the samples. Other values (a flag, None) stay as they are.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from pruning_lab.errors import UserError

Inputs = Any
"""A tensor, a tuple of positional or a mapping of named arguments of a model."""


def call(model: Callable[..., Any], inputs: Inputs) -> Any:
    """Return what a model gives for its inputs."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)


def inputs_and_target(batch: Any, target_key: str = "labels") -> tuple[Inputs, Any]:
    """Split a batch: (input, target), (several inputs, target), or a dictionary with a target.

    ``target_key`` is the target's name in a dictionary. Raises UserError for any other batch.
    """
    if isinstance(batch, Mapping) and target_key in batch:
        named = _plain(batch)
        return named, named.pop(target_key)
    if isinstance(batch, tuple | list) and len(batch) >= 2:
        *inputs, target = _plain(batch)
        return inputs[0] if len(inputs) == 1 else tuple(inputs), target
    kind = f"{type(batch).__name__} of {len(batch)}" if hasattr(batch, "__len__") else batch
    raise UserError(
        "A batch must be a pair (input, target), a tuple with the target last, or a dictionary "
        f"with the target as {target_key!r}; this one is a {kind}."
    )


def tensors(inputs: Inputs) -> list[torch.Tensor]:
    """Return all tensors, in their order."""
    return [leaf for leaf in tree_leaves(_plain(inputs)) if isinstance(leaf, torch.Tensor)]


def length(inputs: Inputs) -> int:
    """Return the number of samples: that of the first tensor."""
    return len(tensors(inputs)[0])


def select(inputs: Inputs, rows: slice | list[int] | torch.Tensor) -> Inputs:
    """Return some of the samples."""
    if isinstance(rows, torch.Tensor):
        return tree_map_only(torch.Tensor, lambda t: t.index_select(0, rows), _plain(inputs))
    return tree_map_only(torch.Tensor, lambda tensor: tensor[rows], _plain(inputs))


def move(inputs: Inputs, device: torch.device, copy: bool = False) -> Inputs:
    """Return the same on a device; with ``copy`` always copies."""
    return tree_map_only(torch.Tensor, lambda t: t.to(device, copy=copy), _plain(inputs))


def copied(inputs: Inputs) -> Inputs:
    """Return copies, so that a model may change its inputs in place."""
    return tree_map_only(torch.Tensor, torch.clone, inputs)


def in_float32(output: Any) -> Any:
    """Return an output with its tensors of half precision converted to float32."""

    def converted(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
        if is_dataclass(value) and not isinstance(value, type):
            value = copy.copy(value)
            for field in fields(value):
                object.__setattr__(value, field.name, in_float32(getattr(value, field.name)))
        return value

    return tree_map(converted, output)


def joined(parts: Sequence[Inputs]) -> Inputs:
    """Return the samples of several, one after the other."""

    def of(first: Any, *others: Any) -> Any:
        return torch.cat([first, *others]) if isinstance(first, torch.Tensor) else first

    return tree_map(of, *parts)


def _plain(inputs: Inputs) -> Inputs:
    """Return mappings as dictionaries: torch does not look into other kinds."""
    if isinstance(inputs, Mapping):
        return {key: _plain(value) for key, value in inputs.items()}
    return type(inputs)(map(_plain, inputs)) if type(inputs) in (list, tuple) else inputs
