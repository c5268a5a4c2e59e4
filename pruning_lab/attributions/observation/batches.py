"""The data to score on: every reading must give the same samples in the same order."""

import math
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.utils.data import BatchSampler

from pruning_lab.errors import UserError
from pruning_lab.partial_forward.cut import two_and_three
from pruning_lab.runtime import distributed
from pruning_lab.runtime.random_streams import streams_kept

Batch = tuple[torch.Tensor, torch.Tensor]

AMONG = 64
"""Number of first samples searched for one whose target differs from the first one's."""

SAME_AGAIN = (
    "Give a list of batches, or a DataLoader of a data set that can be read repeatedly and draws "
    "random numbers only from the streams of torch, numpy and Python in its own process."
)
"""Advice for data that differ between readings."""


class Batches:
    """Batches (x, target) as copies on a device.

    Reading raises UserError if ``data`` can be read only once, is empty, has batches that are not
    pairs of tensors, or does not give the same samples again.
    """

    def __init__(self, data: Iterable[Any], device: torch.device) -> None:
        self._data, self._device = data, device
        self._digests: list[int] = []  # one per sample, from its first reading

    def anew(self) -> "Batches":
        """Return the same data for another scoring, which may shuffle them differently."""
        return Batches(self._data, self._device)

    def read(self, limit: int | None = None, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of the first ``limit`` samples, without the first ``start`` of them.

        Random streams are restored afterwards, so that a DataLoader shuffles the same every time.
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
                x, target = (t[: None if limit is None else limit - seen] for t in _checked(batch))
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
        """Return the first samples, at most ``limit`` and all from the first batch."""
        return next(self.read(limit))[0]

    def example(self) -> torch.Tensor:
        """Return the first sample twice: code may drop the dimension of a single one."""
        return two_and_three(self.first(1))[0]

    def pair(self) -> Batch:
        """Return two samples that differ, if possible in their targets.

        Twice the first sample if none of the first AMONG differs from it.
        """
        x, target = next(self.read(1))
        second = x, target
        for batch in self.read(AMONG):
            for sample in zip(*(tensor.split(1) for tensor in batch), strict=True):
                if sample[0].shape == x.shape and sample[1].shape == target.shape:
                    if not torch.equal(sample[1], target):
                        return torch.cat([x, sample[0]]), torch.cat([target, sample[1]])
                    second = second if torch.equal(sample[0], x) else sample
        return torch.cat([x, second[0]]), torch.cat([target, second[1]])

    def count(self, limit: int | None = None) -> int:
        """Return the number of samples that ``read`` yields; reads them if it is not known."""
        return self.available(limit) or sum(len(x) for x, _ in self.read(limit))

    def available(self, limit: int | None = None) -> int:
        """Return the number of samples that ``read`` yields; 0 if it is not known beforehand."""
        if isinstance(self._data, list | tuple):
            length = sum(len(x) for x, _ in map(_checked, self._data))
        else:
            length = _length(self._data)
        return min(length, limit or length)

    def _compare(self, seen: int, x: torch.Tensor, target: torch.Tensor) -> None:
        """Raise UserError if samples after the first ``seen`` differ from earlier readings."""
        digests = [hash(both) for both in zip(_bytes(x), _bytes(target), strict=True)]
        for number, (new, old) in enumerate(zip(digests, self._digests[seen:], strict=False), seen):
            if new != old:
                raise UserError(
                    f"The data_generator gave another sample {number} when it was read again, but "
                    f"scores are made on the same samples, read several times. {SAME_AGAIN}"
                )
        self._digests += digests[max(0, len(self._digests) - seen) :]

    def _check_count(self, seen: int) -> None:
        """Raise UserError unless a complete reading had as many samples as expected."""
        expected = max(self.available(), len(self._digests))
        if seen != expected:
            raise UserError(
                f"The data_generator gave {seen} samples and not {expected}, its length or that of "
                f"an earlier reading. {SAME_AGAIN}"
            )


class Part(NamedTuple):
    """This rank's share of ``samples`` consecutive ones; ``first``: its first sample's number.

    The share is all of them if there is one rank, or fewer samples than ranks.
    """

    x: torch.Tensor
    target: torch.Tensor
    first: int
    samples: int


def parts(batch: Batch, at_once: int, seen: int = 0) -> Iterator[Part]:
    """Split a batch, after ``seen`` samples, into parts of up to ``at_once`` samples per rank."""
    for x, target in zip(
        *(tensor.split(at_once * distributed.count()) for tensor in batch), strict=True
    ):
        share = distributed.share(len(x))
        yield Part(x[share], target[share], seen + share.start, len(x))
        seen += len(x)


@contextmanager
def _streams_put_back(data: object) -> Iterator[None]:
    """Restore all random streams afterwards, also that of a DataLoader with its own generator."""
    generator = getattr(data, "generator", None)
    state = generator.get_state() if isinstance(generator, torch.Generator) else None
    try:
        with streams_kept():
            yield
    finally:
        if isinstance(generator, torch.Generator) and state is not None:
            generator.set_state(state)


def _length(data: object) -> int:
    """Return the number of samples in a DataLoader's batches; 0 if it is not known."""
    batches = getattr(data, "batch_sampler", None) or getattr(data, "sampler", None)
    if type(batches) is not BatchSampler or not isinstance(batches.sampler, Sized):
        return 0
    count = len(batches.sampler)
    return count - count % batches.batch_size if batches.drop_last else count


def _checked(batch: Any) -> Batch:
    pair = isinstance(batch, tuple | list) and len(batch) == 2
    if not pair or not all(isinstance(member, torch.Tensor) for member in batch):
        kind = f"{type(batch).__name__} of {len(batch)}" if hasattr(batch, "__len__") else batch
        raise UserError(f"Batches must be pairs of tensors (x, target); this one is a {kind}.")
    x, target = batch
    if x.shape[:1] != target.shape[:1] or x.ndim == 0:
        raise UserError(
            "x and target of a batch must have the samples in their first dimension; there are x "
            f"{tuple(x.shape)} and target {tuple(target.shape)}."
        )
    return x, target


def _bytes(samples: torch.Tensor) -> Iterator[bytes]:
    """Yield the exact bytes of each sample."""
    rows = samples.detach().cpu().reshape(len(samples), math.prod(samples.shape[1:])).contiguous()
    return (row.tobytes() for row in rows.view(torch.uint8).numpy())
