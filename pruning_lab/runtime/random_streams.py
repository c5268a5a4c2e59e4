"""Seed, save and restore the global random streams of torch, numpy and Python.

A user's data set or model may draw from any of them, so all are treated alike.
"""

import random
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import numpy as np
import torch

States = dict[str, torch.Tensor]


def seed_all(seed: int) -> None:
    """Seed every stream; numpy's with the last 32 bits of ``seed``."""
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:  # the same, half a millisecond faster without an accelerator
        torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  (the stream that user code draws from)
    random.seed(seed)


def seeded(seed: int, stage: int) -> torch.Generator:
    """Seed every stream for one stage of an experiment, whatever ran before; return another one.

    Dropout and augmentation draw from the streams that everybody shares.
    """
    own = seed_of(seed, stage)
    seed_all(own)
    return torch.Generator().manual_seed(own)


def seed_of(seed: int, stage: int) -> int:
    """Return a seed of its own for each stage."""
    return int(np.random.SeedSequence([seed, stage]).generate_state(1)[0])


def states(device: torch.device) -> States:
    """Return the state of every stream as tensors, of ``device`` too if it is a GPU."""
    version, numbers, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    saved = {
        "torch": torch.get_rng_state(),
        "numpy": torch.tensor([*map(int, keys), position, has_gauss]),
        "numpy_gauss": torch.tensor(cached, dtype=torch.float64),
        "python": torch.tensor([version, *numbers]),
        "python_gauss": torch.tensor(float("nan") if gauss is None else gauss, dtype=torch.float64),
    }
    if device.type == "cuda":
        saved["cuda"] = torch.cuda.get_rng_state(device)
    return saved


def set_states(saved: States, device: torch.device) -> None:
    """Set every stream to ``saved``, the states that ``states`` returned."""
    torch.set_rng_state(saved["torch"])
    *keys, position, has_gauss = saved["numpy"].tolist()
    words, cached = np.array(keys, np.uint32), saved["numpy_gauss"].item()
    np.random.set_state(("MT19937", words, position, has_gauss, cached))  # noqa: NPY002
    version, *numbers = saved["python"].tolist()
    gauss = saved["python_gauss"].item()
    random.setstate((version, tuple(numbers), None if gauss != gauss else gauss))
    if device.type == "cuda":
        torch.cuda.set_rng_state(saved["cuda"], device)


@contextmanager
def streams_kept(devices: Collection[torch.device] = ()) -> Iterator[None]:
    """Restore every stream after the block, also those of the GPUs among ``devices``."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    torch_state = torch.get_rng_state()
    gpus = {d: torch.cuda.get_rng_state(d) for d in devices if d.type == "cuda"}
    try:
        yield
    finally:
        torch.set_rng_state(torch_state)
        for device, state in gpus.items():
            torch.cuda.set_rng_state(state, device)
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)
