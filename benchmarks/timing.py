"""Time a function: CPU time of the process, or wall time until a GPU is done."""

import time
from collections.abc import Callable
from typing import Any

import torch


def cpu_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the CPU seconds of all threads, and the result of ``work``."""
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


def seconds_on(device: str, work: Callable[[], Any]) -> tuple[float, Any]:
    """Return CPU seconds on the CPU, or wall seconds until a GPU is done; and the result."""
    if device == "cpu":
        return cpu_seconds(work)
    torch.cuda.synchronize()
    started = time.perf_counter()
    result = work()
    torch.cuda.synchronize()
    return time.perf_counter() - started, result
