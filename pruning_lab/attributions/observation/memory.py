"""Measure the memory of the tensors that an operation creates, and limit batch sizes by it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Room:
    """Numbers of samples, masked rows, and masked rows with a backward pass that fit at once."""

    samples: int
    rows: int
    taped: int


class Made(TorchDispatchMode):
    """Count the ``bytes`` of all tensors that are created inside, and of the ``largest``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.bytes = self.largest = 0
        existing = (*model.parameters(), *model.buffers())
        self._seen = {tensor.untyped_storage().data_ptr() for tensor in existing}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self._seen:
                    self._seen.add(storage.data_ptr())
                    self.bytes += storage.nbytes()
                    self.largest = max(self.largest, storage.nbytes())
        return result
