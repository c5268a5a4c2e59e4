"""The data that scores are made on: read several times, each time the same samples in one order."""

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.utils.data import BatchSampler

from pruning_lab import ranks
from pruning_lab.errors import UserError
from pruning_lab.graph.cut import two_and_three
from pruning_lab.random_streams import streams_kept

Batch = tuple[torch.Tensor, torch.Tensor]


class Batches:
    """Batches (x, target) as copies on a device.

    Raises UserError while reading where ``data`` can be read only once, is empty, or has batches
    that are no pairs of tensors.
    """

    def __init__(self, data: Iterable[Any], device: torch.device) -> None:
        self._data, self._device = data, device

    def read(self, limit: int | None = None) -> Iterator[Batch]:
        """The batches, the first ``limit`` samples of them.

        Random streams are put back afterwards: a DataLoader that shuffles does it alike each time.
        """
        seen = 0
        with _streams_put_back(self._data):
            batches = iter(self._data)
            if batches is self._data:
                raise UserError(
                    "The data_generator can be read only once, but it is read several times. Give "
                    "a list of batches or a DataLoader."
                )
            for batch in batches:
                x, target = _checked(batch)
                left = len(x) if limit is None else limit - seen
                seen += len(x)
                yield x[:left].to(self._device, copy=True), target[:left].to(self._device)
                if limit is not None and seen >= limit:
                    return
        if seen == 0:
            raise UserError("The data_generator yielded no batch: nothing to score on.")

    def first(self, limit: int) -> torch.Tensor:
        """The first samples, at most so many, of the first batch."""
        return next(self.read(limit))[0]

    def example(self) -> torch.Tensor:
        """The first sample, twice: of a single one, code may drop the dimension."""
        return two_and_three(self.first(1))[0]

    def count(self, limit: int | None = None) -> int:
        """How many samples ``read`` will give; they are read where nothing else tells."""
        return self.available(limit) or sum(len(x) for x, _ in self.read(limit))

    def available(self, limit: int | None = None) -> int:
        """How many samples ``read`` will give; 0 if that cannot be told beforehand."""
        if isinstance(self._data, list | tuple):
            length = sum(len(x) for x, _ in map(_checked, self._data))
        else:
            length = _length(self._data)
        return min(length, limit or length)


class Part(NamedTuple):
    """This rank's share of ``samples`` consecutive ones, and the number of its first of them all.

    The share is all of them where there is one rank, or are fewer samples than ranks.
    """

    x: torch.Tensor
    target: torch.Tensor
    first: int
    samples: int


def parts(batch: Batch, at_once: int, seen: int = 0) -> Iterator[Part]:
    """A batch behind ``seen`` others, in parts of which every rank takes up to ``at_once``."""
    for x, target in zip(*(each.split(at_once * ranks.count()) for each in batch), strict=True):
        own = ranks.share(len(x))
        yield Part(x[own], target[own], seen + own.start, len(x))
        seen += len(x)


@contextmanager
def _streams_put_back(data: object) -> Iterator[None]:
    """All random streams, and that of a DataLoader that has one, as before."""
    own = getattr(data, "generator", None)
    state = own.get_state() if isinstance(own, torch.Generator) else None
    try:
        with streams_kept():
            yield
    finally:
        if isinstance(own, torch.Generator) and state is not None:
            own.set_state(state)


def _length(data: object) -> int:
    """How many samples a DataLoader's batches have; 0 if that cannot be told."""
    batches = getattr(data, "batch_sampler", None) or getattr(data, "sampler", None)
    if not isinstance(batches, BatchSampler) or not isinstance(batches.sampler, Sized):
        return 0
    count = len(batches.sampler)
    return count - count % batches.batch_size if batches.drop_last else count


def _checked(batch: Any) -> Batch:
    pair = isinstance(batch, tuple | list) and len(batch) == 2
    if not pair or not all(isinstance(each, torch.Tensor) for each in batch):
        kind = f"{type(batch).__name__} of {len(batch)}" if hasattr(batch, "__len__") else batch
        raise UserError(f"Batches must be pairs of tensors (x, target); there is a {kind}.")
    return batch[0], batch[1]
