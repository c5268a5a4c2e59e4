"""What work takes: passes through a network, wall time, peak memory."""

import ctypes
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

import torch

from pruning_lab import ranks


@dataclass
class Passes:
    """Passes of one sample through the whole network, forward and backward.

    A part of the network counts by its share of the FLOPs. A whole backward pass leads from the
    loss to the outputs of the first layers, as gradients of activations do: none of weights.
    ``checks`` are forward passes that only look at how the model runs, on a few samples however
    many there are; they are not in ``forward``, nor what leads back from them in ``backward``.
    """

    forward: float = 0.0
    backward: float = 0.0
    checks: float = 0.0


@dataclass
class Cost(Passes):
    """What a scoring took: its passes, and what they took of the machine.

    ``peak_bytes`` is the largest memory above that at the start: of tensors on a GPU, else of the
    whole process (what it has of its own beside the work counts, too); None where it cannot be
    told.
    """

    seconds: float = 0.0
    peak_bytes: int | None = None


@dataclass(frozen=True)
class Prediction:
    """The passes that a scoring will take, as they are counted; ``at_most`` where perhaps fewer.

    ``seconds`` is the time after which it ends by itself.
    """

    forward: float = 0.0
    backward: float = 0.0
    at_most: bool = False
    seconds: float | None = None


_listening: ContextVar[Passes | None] = ContextVar("listening", default=None)


def listens() -> bool:
    """Whether anybody counts passes."""
    return _listening.get() is not None


def forward(samples: int, share: float = 1.0) -> None:
    """So many samples went through a share of the network."""
    if (passes := _listening.get()) is not None:
        passes.forward += samples * share


def backward(samples: int, share: float = 1.0) -> None:
    """The same from the loss back."""
    if (passes := _listening.get()) is not None:
        passes.backward += samples * share


@contextmanager
def counted(passes: Passes) -> Iterator[None]:
    """Passes inside are added to ``passes``, and to no others."""
    token = _listening.set(passes)
    try:
        yield
    finally:
        _listening.reset(token)


@contextmanager
def checking() -> Iterator[None]:
    """Passes inside only look at the model."""
    outer = _listening.get()
    if outer is None:
        yield
        return
    inner = Passes()
    with counted(inner):
        yield
    outer.checks += inner.forward + inner.checks


@contextmanager
def measured(device: torch.device) -> Iterator[Cost]:
    """What the work inside takes on ``device``; filled in at the end. Not to be nested.

    The passes are those of all ranks; checks, seconds and memory are this one's.
    """
    cost, on_gpu = Cost(), device.type == "cuda"
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
    cost.forward, cost.backward = ranks.total(cost.forward), ranks.total(cost.backward)
    cost.seconds = time.perf_counter() - started
    if before is not None:
        peak = torch.cuda.max_memory_allocated(device) if on_gpu else _resident("VmHWM")
        cost.peak_bytes = max(0, peak - before)


def _resident_from_now_on() -> int | None:
    """The process's resident memory, whose peak Linux counts anew from here; None elsewhere.

    What was freed goes back to the system first: work that used it again would seem to take none.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        return _resident("VmRSS")
    except (OSError, TypeError, AttributeError):  # another system, another C library, no right
        return None


def _resident(which: str) -> int:
    """VmRSS, what is resident now, or VmHWM, its peak, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(which)).split()[1])
