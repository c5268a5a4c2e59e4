"""The data that scores are made on: read several times, each time the same samples in one order."""

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import BatchSampler

from pruning_lab.errors import UserError
from pruning_lab.graph.cut import two_and_three

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

    def available(self, limit: int | None = None) -> int:
        """How many samples ``read`` will give; 0 if that cannot be told beforehand."""
        if isinstance(self._data, list | tuple):
            length = sum(len(x) for x, _ in map(_checked, self._data))
        else:
            sampler = getattr(self._data, "sampler", None)
            if isinstance(sampler, BatchSampler):  # of batches, in data sets that read them whole
                sampler = sampler.sampler
            length = len(sampler) if isinstance(sampler, Sized) else 0
        return min(length, limit or length)


@contextmanager
def _streams_put_back(data: object) -> Iterator[None]:
    """torch's own random stream, and that of a DataLoader that has one, as before."""
    own = getattr(data, "generator", None)
    state = own.get_state() if isinstance(own, torch.Generator) else None
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        if isinstance(own, torch.Generator) and state is not None:
            own.set_state(state)


def _checked(batch: Any) -> Batch:
    pair = isinstance(batch, tuple | list) and len(batch) == 2
    if not pair or not all(isinstance(each, torch.Tensor) for each in batch):
        kind = f"{type(batch).__name__} of {len(batch)}" if hasattr(batch, "__len__") else batch
        raise UserError(f"Batches must be pairs of tensors (x, target); there is a {kind}.")
    return batch[0], batch[1]
