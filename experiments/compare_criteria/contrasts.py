"""The contrasts that contrasts.md planned before the first network, and their tests."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from experiments.compare_criteria.records import CUTS, FEW, LONG, NONE, Block
from pruning_lab.compare import holm
from pruning_lab.compare.crossed import crossed_mean
from pruning_lab.compare.exact import sign_flip_p

MARGIN = 0.5
"""Points of mean accuracy below which two criteria count as equivalent."""


@dataclass(frozen=True)
class Contrast:
    """Differences of accuracies, one a network and picture, under their name."""

    name: str
    where: str
    of: Callable[[Block], np.ndarray]


def gap(block: Block, first: str, second: str, repair: str, at: int | str = CUTS) -> np.ndarray:
    """Return (networks, pictures): one criterion minus another after the same repair."""
    return block.accuracy(first, repair, at) - block.accuracy(second, repair, at)


def between(first: str, second: str, repair: str) -> Contrast:
    """Return the contrast of two criteria after the same repair."""
    return Contrast(f"{first} - {second}", repair, lambda block: gap(block, first, second, repair))


def _of_stale(block: Block) -> np.ndarray:
    return gap(block, "taylor", "random", "stale") - gap(block, "taylor", "random", NONE)


def _of_recovery(block: Block) -> np.ndarray:
    gains = [
        block.accuracy(name, LONG) - block.accuracy(name, NONE) for name in block.measured(LONG)
    ]
    return np.mean(gains, axis=0)


PRIMARY = [
    Contrast("(taylor - random) stale - made anew", "stale, 0 steps", _of_stale),
    between("taylor", "random", NONE),
    between("shapley mean 256", "taylor", NONE),
    between("shapley mean_abs 64", "shapley mean 64", NONE),
    between("shapley mean_plus_2_std 64", "shapley mean 64", NONE),
    between("shapley mean 256", "shapley mean 16", NONE),
    between("taylor", "taylor_signed", NONE),
    between("taylor", "random", LONG),
    between("shapley mean 256", "random", LONG),
    between("shapley mean_plus_2_std 256", "taylor", FEW),
    between("shapley mean_plus_2_std 256", "weight_norm", FEW),
    Contrast("160 steps - 0 steps, all criteria", "", _of_recovery),
]
"""As contrasts.md has them."""


BESIDE = [
    Contrast(
        "(taylor - random) stale - made anew, first cut", "stale, 0 steps",
        lambda block: gap(block, "taylor", "random", "stale", 1)
        - gap(block, "taylor", "random", NONE, 1),
    ),
    *(
        Contrast(f"{each.name}, 95 %", each.where, partial(gap, first=first, second=second,
                                                          repair=each.where, at=6))
        for each in PRIMARY[7:11]
        for first, second in [each.name.split(" - ")]
    ),
]  # fmt: skip
"""Reported beside the primary contrasts, without a correction."""


def contrasts(block: Block) -> pd.DataFrame:
    """Test what was planned; Holm's correction over the primary contrasts.

    ``p`` is that of the crossed model, for other networks and other pictures; ``p_flips`` is exact,
    for other networks on these pictures. ``p_holm`` adjusts the larger one: both must hold.
    """
    rows = []
    for each in PRIMARY + BESIDE:
        values = each.of(block)
        found = crossed_mean(values)
        rows.append(
            {
                "contrast": each.name, "repair": each.where, "primary": each in PRIMARY,
                "mean": found.mean, "low": found.low, "high": found.high,
                "error_networks": found.networks, "error_pictures": found.pictures,
                "p": found.p, "p_flips": sign_flip_p(values.mean(1)),
                "p_equivalent": found.p_equivalent(MARGIN),
            }
        )  # fmt: skip
    table = pd.DataFrame(rows)
    table["p_holm"] = np.nan
    own = table["primary"]
    table.loc[own, "p_holm"] = holm(table.loc[own, ["p", "p_flips"]].max(axis=1))
    return table
