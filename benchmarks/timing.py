"""What work costs: CPU time of the process, or the time until a GPU is done."""

import time
from collections.abc import Callable
from typing import Any

import torch


def cpu_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU time of all threads, and the result."""
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


def seconds_on(device: str, work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU time on the CPU; on a GPU the time until it is done."""
    if device == "cpu":
        return cpu_seconds(work)
    torch.cuda.synchronize()
    started = time.perf_counter()
    result = work()
    torch.cuda.synchronize()
    return time.perf_counter() - started, result
