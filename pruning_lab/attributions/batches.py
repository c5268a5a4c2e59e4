"""The data that scores are made on: read several times, each time the same samples in one order."""

import math
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

AMONG = 64
"""Among so many first samples one is sought whose target is another than the first one's."""

SAME_AGAIN = (
    "Give a list of batches, or a DataLoader of a data set that is not used up by being read and "
    "draws at random only from the streams of torch, numpy and Python in its own process."
)
"""Advice for data that differ from reading to reading."""


class Batches:
    """Batches (x, target) as copies on a device.

    Raises UserError while reading where ``data`` can be read only once, is empty, has batches that
    are no pairs of tensors, or does not give the same samples again.
    """

    def __init__(self, data: Iterable[Any], device: torch.device) -> None:
        self._data, self._device = data, device
        self._digests: list[int] = []  # one a sample, as it was read first

    def anew(self) -> "Batches":
        """The same data for another scoring, which may shuffle them in another way."""
        return Batches(self._data, self._device)

    def read(self, limit: int | None = None, start: int = 0) -> Iterator[Batch]:
        """The batches of the first ``limit`` samples, without the first ``start`` of them.

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
                x, target = (
                    each[: None if limit is None else limit - seen] for each in _checked(batch)
                )
                self._compare(seen, x, target)
                skipped = max(0, start - seen)
                seen += len(x)
                if not skipped or skipped < len(x):
                    x, target = x[skipped:], target[skipped:]
                    yield x.to(self._device, copy=True), target.to(self._device, copy=True)
                if limit is not None and seen >= limit:
                    return
        if seen == 0:
            raise UserError("The data_generator yielded no batch: nothing to score on.")
        self._check_count(seen)

    def first(self, limit: int) -> torch.Tensor:
        """The first samples, at most so many, of the first batch."""
        return next(self.read(limit))[0]

    def example(self) -> torch.Tensor:
        """The first sample, twice: of a single one, code may drop the dimension."""
        return two_and_three(self.first(1))[0]

    def pair(self) -> Batch:
        """Two samples that differ, in their targets where some of the first do.

        Twice the first where there is no other.
        """
        x, target = next(self.read(1))
        other = x, target
        for batch in self.read(AMONG):
            for more in zip(*(each.split(1) for each in batch), strict=True):
                if more[0].shape == x.shape and more[1].shape == target.shape:
                    if not torch.equal(more[1], target):
                        return torch.cat([x, more[0]]), torch.cat([target, more[1]])
                    other = other if torch.equal(more[0], x) else more
        return torch.cat([x, other[0]]), torch.cat([target, other[1]])

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

    def _compare(self, seen: int, x: torch.Tensor, target: torch.Tensor) -> None:
        """UserError unless the samples after the first ``seen`` are those of earlier readings."""
        digests = [hash(both) for both in zip(_bytes(x), _bytes(target), strict=True)]
        for number, (new, old) in enumerate(zip(digests, self._digests[seen:], strict=False), seen):
            if new != old:
                raise UserError(
                    f"The data_generator gave another sample {number} when it was read again, but "
                    f"scores are made on the same samples, read several times. {SAME_AGAIN}"
                )
        self._digests += digests[max(0, len(self._digests) - seen) :]

    def _check_count(self, seen: int) -> None:
        """UserError unless a reading to the end had as many samples as there are."""
        expected = max(self.available(), len(self._digests))
        if seen != expected:
            raise UserError(
                f"The data_generator gave {seen} samples and not {expected}, as it says itself or "
                f"gave before. {SAME_AGAIN}"
            )


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
    if type(batches) is not BatchSampler or not isinstance(batches.sampler, Sized):
        return 0
    count = len(batches.sampler)
    return count - count % batches.batch_size if batches.drop_last else count


def _checked(batch: Any) -> Batch:
    pair = isinstance(batch, tuple | list) and len(batch) == 2
    if not pair or not all(isinstance(each, torch.Tensor) for each in batch):
        kind = f"{type(batch).__name__} of {len(batch)}" if hasattr(batch, "__len__") else batch
        raise UserError(f"Batches must be pairs of tensors (x, target); there is a {kind}.")
    x, target = batch
    if x.shape[:1] != target.shape[:1] or x.ndim == 0:
        raise UserError(
            "x and target of a batch must have the samples in their first dimension; there are x "
            f"{tuple(x.shape)} and target {tuple(target.shape)}."
        )
    return x, target


def _bytes(samples: torch.Tensor) -> Iterator[bytes]:
    """What each sample is, bit for bit."""
    rows = samples.detach().cpu().reshape(len(samples), math.prod(samples.shape[1:])).contiguous()
    return (row.tobytes() for row in rows.view(torch.uint8).numpy())
