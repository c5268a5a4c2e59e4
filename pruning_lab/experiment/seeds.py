"""Random streams of their own for each stage of an experiment."""

import numpy as np
import torch

from pruning_lab.runtime.random_streams import seed_all


def seeded(seed: int, stage: int) -> torch.Generator:
    """Random streams for one stage of training: they do not depend on what ran before."""
    own = seed_of(seed, stage)
    seed_all(own)  # Dropout and augmentation draw from the streams that everybody shares
    return torch.Generator().manual_seed(own)


def seed_of(seed: int, stage: int) -> int:
    """A seed of its own for each stage."""
    return int(np.random.SeedSequence([seed, stage]).generate_state(1)[0])
