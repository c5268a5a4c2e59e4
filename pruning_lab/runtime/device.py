"""Choose the device that a run uses."""

import torch

from pruning_lab.errors import UserError
from pruning_lab.runtime import distributed


def find_device(name: str) -> torch.device:
    """Return the device ``name``; ``auto`` is a GPU if there is one. Each rank has its own GPU.

    Raises UserError if the device cannot be used.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if distributed.count() > 1 and name.startswith("cuda"):
        if name != "cuda":
            raise UserError(f"device={name} is not possible for several processes: give cuda.")
        name = f"cuda:{distributed.local()}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        raise UserError(
            f"device={name} is not available on this machine. Use auto or cpu."
        ) from error
    return device


def spread(device: str, job: int) -> str:
    """Return the device of job number ``job`` of a sweep: ``auto`` assigns the GPUs in turn."""
    count = torch.cuda.device_count()
    return f"cuda:{job % count}" if device == "auto" and count > 1 else device
