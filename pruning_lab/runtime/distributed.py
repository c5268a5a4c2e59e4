"""Work on one model in several processes (ranks), started by torchrun.

All ranks run the same program on shares of the same batches. Rank 0 alone writes files and decides
what depends on the disk, the rest of the machine or the time. With a single process the functions
here cost nothing and change no numbers.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import pairwise
from typing import TypeVar

import torch
import torch.distributed as dist

from pruning_lab.errors import UserError
from pruning_lab.runtime.random_streams import seed_all

T = TypeVar("T")

PATIENCE = timedelta(days=30)
"""Timeout of ranks that wait for each other: long, because rank 0 may wait for a lock. If a
rank ends, torchrun ends all others anyway."""


@contextmanager
def joined() -> Iterator[None]:
    """Join the process group of torchrun, if its environment variables say that there is one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    gpus = torch.cuda.is_available()
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    if gpus and local() < torch.cuda.device_count():
        torch.cuda.set_device(local())
    dist.init_process_group(backend, timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def count() -> int:
    """Return the number of ranks."""
    return dist.get_world_size() if _is_one_of_several() else 1


def number() -> int:
    """Return the rank of this process."""
    return dist.get_rank() if _is_one_of_several() else 0


def _is_one_of_several() -> bool:
    return dist.is_available() and dist.is_initialized()


def local() -> int:
    """Return the rank of this process on its machine, which is the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def leads() -> bool:
    """Return True on rank 0, which decides and writes."""
    return number() == 0


def silent() -> bool | None:
    """Return tqdm's ``disable``: None on rank 0 (a bar only in a terminal), True on other ranks."""
    return None if leads() else True


def agreed(make: Callable[[], T]) -> T:
    """Call ``make`` on rank 0 only; return its result on every rank.

    If it raises an exception, the other ranks raise UserError with the same message.
    """
    if count() == 1:
        return make()
    answer: list = [None, None]
    failure = None
    if leads():
        try:
            answer[0] = make()
        except Exception as error:
            failure, answer[1] = error, str(error)
    dist.broadcast_object_list(answer)
    if failure is not None:
        raise failure
    if answer[1] is not None:
        raise UserError(answer[1])
    return answer[0]


def leader_first(make: Callable[[], T]) -> T:
    """Call ``make`` on every rank, rank 0 first as it may download files; return its result."""
    made: list[T] = []
    agreed(lambda: made.append(make()))
    return made[0] if leads() else make()


def says(message: str) -> bool:
    """Return True on the first rank that asks, so that a message of all ranks is shown once."""
    if count() == 1:
        return True
    first: bool = dist.distributed_c10d._get_default_store().add(f"said/{message}", 1) == 1
    if not first:
        time.sleep(1)  # if this rank ended now, torchrun would end the first before it reports
    return first


def share(samples: int) -> slice:
    """Return the slice of a batch that is this rank's share; all of it if there are more ranks."""
    if samples < count():
        return slice(0, samples)
    ends = _ends(samples)
    return slice(ends[number()], ends[number() + 1])


def gathered(rows: torch.Tensor, samples: int) -> torch.Tensor:
    """Concatenate every rank's ``rows``, one per sample of its share, to (``samples``, ...)."""
    if len(rows) == samples:
        return rows
    ends = _ends(samples)
    lengths = [end - start for start, end in pairwise(ends)]
    padded = rows.new_zeros(max(lengths), *rows.shape[1:])
    padded[: len(rows)] = rows
    shares = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(shares, padded)
    return torch.cat([piece[:length] for piece, length in zip(shares, lengths, strict=True)])


def _ends(samples: int) -> list[int]:
    """Return the boundaries of the ranks' shares of a batch."""
    return [samples * rank // count() for rank in range(count() + 1)]


def total(value: float) -> float:
    """Return the sum of a number over all ranks."""
    if count() == 1:
        return value
    summed = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(summed)
    return summed.item()


def lead(tensors: Iterable[torch.Tensor]) -> None:
    """Overwrite tensors, in place, with their values on rank 0."""
    if count() > 1:
        for tensor in tensors:
            contiguous = tensor.contiguous()  # as broadcast requires
            dist.broadcast(contiguous, 0)
            tensor.copy_(contiguous)


def draw_apart(order: torch.Generator) -> None:
    """Seed the random streams, differently on each rank, from the state of ``order``."""
    if count() > 1:
        here = torch.Generator()
        here.set_state(order.get_state())
        seed_all(int(torch.randint(2**62, (), generator=here)) + number())
