"""Several processes that work on one model: torchrun starts them, each has a rank.

All of them run the same program on shares of the same batches. What depends on the disk, the rest
of the machine or the time is decided by the leading rank alone, and it alone writes. With one
process nothing here costs anything or changes a number.
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
from pruning_lab.random_streams import seed_all

T = TypeVar("T")

PATIENCE = timedelta(days=30)
"""How long ranks wait for each other: the leading one may wait for a lock, and torchrun ends all
when one is gone."""


@contextmanager
def joined() -> Iterator[None]:
    """One of the processes that torchrun started, by its environment variables; else nothing."""
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
    """How many ranks there are."""
    return dist.get_world_size() if _is_one_of_several() else 1


def number() -> int:
    """Which of them this is."""
    return dist.get_rank() if _is_one_of_several() else 0


def _is_one_of_several() -> bool:
    return dist.is_available() and dist.is_initialized()


def local() -> int:
    """Which of those on this machine this is: the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def leads() -> bool:
    """Whether this is the rank that decides and writes."""
    return number() == 0


def silent() -> bool | None:
    """What tqdm's ``disable`` is to be: None, where there is a terminal, on the leading rank."""
    return None if leads() else True


def agreed(make: Callable[[], T]) -> T:
    """What ``make`` gives on the leading rank, which alone calls it; what it raises, too."""
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
    """``make()`` on every rank, after the leading one: it may leave files, downloads say."""
    made: list[T] = []
    agreed(lambda: made.append(make()))
    return made[0] if leads() else make()


def says(message: str) -> bool:
    """Whether this rank is the first to say this: what befalls all is said once."""
    if count() == 1:
        return True
    first: bool = dist.distributed_c10d._get_default_store().add(f"said/{message}", 1) == 1
    if not first:
        time.sleep(1)  # torchrun ends the first when another has ended
    return first


def share(samples: int) -> slice:
    """Which samples of a batch are this rank's: all of them where there are fewer than ranks."""
    if samples < count():
        return slice(0, samples)
    ends = _ends(samples)
    return slice(ends[number()], ends[number() + 1])


def gathered(rows: torch.Tensor, samples: int) -> torch.Tensor:
    """The rows of all ``samples`` in their order, where these are of this rank's share."""
    if len(rows) == samples:
        return rows
    ends = _ends(samples)
    lengths = [end - start for start, end in pairwise(ends)]
    padded = rows.new_zeros(max(lengths), *rows.shape[1:])
    padded[: len(rows)] = rows
    found = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(found, padded)
    return torch.cat([each[:length] for each, length in zip(found, lengths, strict=True)])


def _ends(samples: int) -> list[int]:
    """Where the shares of a batch begin and end."""
    return [samples * rank // count() for rank in range(count() + 1)]


def total(value: float) -> float:
    """The sum of a number over the ranks."""
    if count() == 1:
        return value
    summed = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(summed)
    return summed.item()


def lead(tensors: Iterable[torch.Tensor]) -> None:
    """Give tensors the values that they have on the leading rank."""
    if count() > 1:
        for tensor in tensors:
            whole = tensor.contiguous()  # nothing else is sent
            dist.broadcast(whole, 0)
            tensor.copy_(whole)


def draw_apart(order: torch.Generator) -> None:
    """Seed the random streams anew, otherwise on every rank, by where ``order`` stands."""
    if count() > 1:
        here = torch.Generator()
        here.set_state(order.get_state())
        seed_all(int(torch.randint(2**62, (), generator=here)) + number())
