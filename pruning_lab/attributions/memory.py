"""How much memory an operation takes, measured on one sample."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Room:
    """How many samples of a batch, masked rows, and rows with a way back go at once."""

    samples: int
    rows: int
    taped: int


class Made(TorchDispatchMode):
    """While it is active: the ``bytes`` of all tensors that are made, and of the ``largest``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.bytes = self.largest = 0
        there = (*model.parameters(), *model.buffers())
        self._seen = {tensor.untyped_storage().data_ptr() for tensor in there}

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
