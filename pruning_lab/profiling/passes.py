"""Measure what work costs: passes through a network, wall time, peak memory."""

import ctypes
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

import torch

from pruning_lab.runtime import distributed


@dataclass
class Passes:
    """Numbers of passes of one sample through the entire network, forward and backward.

    A pass through a part of the network counts as that part's share of the FLOPs. A full backward
    pass leads from the loss to the outputs of the first layers, for gradients of activations, not
    of weights. ``checks`` are forward passes that only test how the model runs, on a few samples
    however many there are; ``forward`` excludes them, and ``backward`` any passes back from them.
    """

    forward: float = 0.0
    backward: float = 0.0
    checks: float = 0.0


@dataclass
class ScoringCost(Passes):
    """Cost of scoring: passes, wall time in seconds and peak memory.

    ``peak_bytes`` is the peak memory minus that at the start: of tensors on a GPU, else of the
    entire process, including memory unrelated to the work; None if it cannot be measured.
    """

    seconds: float = 0.0
    peak_bytes: int | None = None


@dataclass(frozen=True)
class Prediction:
    """Passes that scoring will take, counted as in ``Passes``; an upper bound if ``at_most``.

    ``seconds`` is the time after which it stops by itself; None for no limit.
    """

    forward: float = 0.0
    backward: float = 0.0
    at_most: bool = False
    seconds: float | None = None


_listening: ContextVar[Passes | None] = ContextVar("listening", default=None)


def listens() -> bool:
    """Return True if passes are being counted."""
    return _listening.get() is not None


def forward(samples: int, share: float = 1.0) -> None:
    """Count a forward pass of ``samples`` through a ``share`` of the network."""
    if (passes := _listening.get()) is not None:
        passes.forward += samples * share


def backward(samples: int, share: float = 1.0) -> None:
    """Count a backward pass of ``samples`` through a ``share`` of the network."""
    if (passes := _listening.get()) is not None:
        passes.backward += samples * share


@contextmanager
def counted(passes: Passes) -> Iterator[None]:
    """Add the passes inside the block to ``passes``, and to no outer count."""
    token = _listening.set(passes)
    try:
        yield
    finally:
        _listening.reset(token)


@contextmanager
def checking() -> Iterator[None]:
    """Count the forward passes inside the block as checks, and ignore the backward ones."""
    outer = _listening.get()
    if outer is None:
        yield
        return
    inner = Passes()
    with counted(inner):
        yield
    outer.checks += inner.forward + inner.checks


@contextmanager
def measured(device: torch.device) -> Iterator[ScoringCost]:
    """Yield the cost of the block on ``device``, filled in at its end. Must not be nested.

    Passes are summed over all ranks; checks, seconds and memory are this rank's.
    """
    cost, on_gpu = ScoringCost(), device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before: int | None = torch.cuda.memory_allocated(device)
    else:
        before = _resident_from_now_on()
    started = time.perf_counter()
    with counted(cost):
        yield cost
    if on_gpu:
        torch.cuda.synchronize(device)
    cost.forward, cost.backward = distributed.total(cost.forward), distributed.total(cost.backward)
    cost.seconds = time.perf_counter() - started
    if before is not None:
        peak = torch.cuda.max_memory_allocated(device) if on_gpu else _resident("VmHWM")
        cost.peak_bytes = max(0, peak - before)


def _resident_from_now_on() -> int | None:
    """Reset Linux's peak of resident memory; return the present value in bytes, None elsewhere.

    Freed memory is returned to the system first: work that reused it would seem to need none.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        return _resident("VmRSS")
    except (OSError, TypeError, AttributeError):  # another system or C library, or no permission
        return None


def _resident(which: str) -> int:
    """Return VmRSS, the present resident memory, or VmHWM, its peak, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(which)).split()[1])
