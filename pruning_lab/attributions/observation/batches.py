"""The data to score on, the same samples at every reading, and how many of them fit in memory."""

import math
from collections.abc import Iterable, Iterator, Sized
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import BatchSampler

from pruning_lab.errors import UserError
from pruning_lab.runtime import distributed
from pruning_lab.runtime.inputs import (
    Inputs,
    inputs_and_target,
    joined,
    length,
    move,
    select,
    tensors,
)
from pruning_lab.runtime.random_streams import streams_kept

Batch = tuple[Inputs, Inputs]
"""The inputs and the targets of the same samples."""

AMONG = 64
"""Number of first samples searched for one whose target differs from the first one's."""

SAME_AGAIN = (
    "Give a list of batches, or a DataLoader of a data set that can be read repeatedly and draws "
    "random numbers only from the streams of torch, numpy and Python in its own process."
)
"""Advice for data that differ between readings."""


class Batches:
    """Batches, split into inputs and target, as copies on a device.

    Reading raises UserError if ``data`` can be read only once, is empty, has batches without a
    target (see ``inputs_and_target``), or does not give the same samples again.
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
        seen, own = 0, getattr(self._data, "generator", None)
        with ExitStack() as stack, streams_kept():
            if isinstance(own, torch.Generator):  # that of a DataLoader
                stack.callback(own.set_state, own.get_state())
            batches = iter(self._data)
            if batches is self._data:
                raise UserError(
                    "The data_generator can be read only once, but it is read several times. Give "
                    "a list of batches or a DataLoader."
                )
            for batch in batches:
                pair = select(_checked(batch), slice(None if limit is None else limit - seen))
                self._compare(seen, pair)
                skipped, count = max(0, start - seen), length(pair)
                seen += count
                if not skipped or skipped < count:
                    yield move(select(pair, slice(skipped, None)), self._device, copy=True)
                if limit is not None and seen >= limit:
                    return
        if seen == 0:
            raise UserError("The data_generator yielded no batch: nothing to score on.")
        expected = max(self.available(), len(self._digests))
        if seen != expected:
            raise UserError(
                f"The data_generator gave {seen} samples and not {expected}, its length or that of "
                f"an earlier reading. {SAME_AGAIN}"
            )

    def first(self, limit: int) -> Inputs:
        """Return the inputs of up to ``limit`` samples of the first batch."""
        return next(self.read(limit))[0]

    def example(self) -> Inputs:
        """Return the first sample twice: code may drop the dimension of a single one."""
        return select(self.first(1), [0, 0])

    def pair(self) -> Batch:
        """Return two samples that differ, if possible in their targets.

        Twice the first sample if none of the first AMONG differs from it.
        """
        first = second = next(self.read(1))
        for batch in self.read(AMONG):
            for row in range(length(batch)):
                sample = select(batch, slice(row, row + 1))
                if _shapes(sample) == _shapes(first):
                    if not _equal(sample[1], first[1]):
                        return joined([first, sample])
                    second = second if _equal(sample[0], first[0]) else sample
        return joined([first, second])

    def count(self, limit: int | None = None) -> int:
        """Return the number of samples that ``read`` yields; reads them if it is not known."""
        return self.available(limit) or sum(map(length, self.read(limit)))

    def available(self, limit: int | None = None) -> int:
        """Return the number of samples that ``read`` yields; 0 if it is not known beforehand."""
        data, count = self._data, 0
        batches = getattr(data, "batch_sampler", None) or getattr(data, "sampler", None)
        if isinstance(data, list | tuple):
            count = sum(length(_checked(batch)) for batch in data)
        elif type(batches) is BatchSampler and isinstance(batches.sampler, Sized):
            count = len(batches.sampler)
            count -= count % batches.batch_size if batches.drop_last else 0
        return min(count, limit or count)

    def _compare(self, seen: int, pair: Batch) -> None:
        """Raise UserError if samples after the first ``seen`` differ from earlier readings."""
        digests = [hash(sample) for sample in zip(*map(_bytes, tensors(pair)), strict=True)]
        for number, (new, old) in enumerate(zip(digests, self._digests[seen:], strict=False), seen):
            if new != old:
                raise UserError(
                    f"The data_generator gave another sample {number} when it was read again, but "
                    f"scores are made on the same samples, read several times. {SAME_AGAIN}"
                )
        self._digests += digests[max(0, len(self._digests) - seen) :]


class Part(NamedTuple):
    """This rank's share of ``samples`` consecutive ones; ``first``: its first sample's number."""

    inputs: Inputs
    target: Inputs
    first: int
    samples: int


def parts(batch: Batch, at_once: int, seen: int = 0) -> Iterator[Part]:
    """Split a batch, after ``seen`` samples, into parts of up to ``at_once`` samples per rank."""
    together = at_once * distributed.count()
    for start in range(0, length(batch), together):
        part = select(batch, slice(start, start + together))
        share = distributed.share(length(part))
        inputs, target = select(part, share)
        yield Part(inputs, target, seen + start + share.start, length(part))


def _checked(batch: Any) -> Batch:
    pair = inputs, target = inputs_and_target(batch)
    for role, given in (("inputs", inputs), ("target", target)):
        if not tensors(given):
            raise UserError(
                f"The {role} of a batch must be a tensor, or several in a tuple or a dictionary; "
                f"there is a {type(given).__name__}."
            )
    shapes = _shapes(pair)
    if len({shape[:1] for shape in shapes}) > 1 or () in shapes:
        of_inputs, of_target = (", ".join(map(str, _shapes(given))) for given in pair)
        raise UserError(
            "All tensors of a batch must have the samples in their first dimension; there are "
            f"inputs {of_inputs} and target {of_target}."
        )
    return pair


def _shapes(inputs: Inputs) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in tensors(inputs)]


def _equal(one: Inputs, other: Inputs) -> bool:
    return all(map(torch.equal, tensors(one), tensors(other)))


def _bytes(samples: torch.Tensor) -> Iterator[bytes]:
    """Yield the exact bytes of each sample."""
    rows = samples.detach().cpu().reshape(len(samples), math.prod(samples.shape[1:])).contiguous()
    return (row.tobytes() for row in rows.view(torch.uint8).numpy())


class Room(NamedTuple):
    """Numbers of samples, masked rows, and masked rows with a backward pass that fit at once."""

    samples: int
    rows: int
    taped: int


class Made(TorchDispatchMode):
    """Count the ``bytes`` of all tensors that are created inside, and of the ``largest``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.bytes = self.largest = 0
        existing = (*model.parameters(), *model.buffers())
        self._seen = {StorageWeakRef(tensor.untyped_storage()) for tensor in existing}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tensors(result):
            storage = tensor.untyped_storage()
            reference = StorageWeakRef(storage)  # an address may be that of memory freed before
            if reference not in self._seen:
                self._seen.add(reference)
                self.bytes += storage.nbytes()
                self.largest = max(self.largest, storage.nbytes())
        return result
