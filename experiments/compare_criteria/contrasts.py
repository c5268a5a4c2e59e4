"""The contrasts that contrasts.md planned before the first network, and their tests."""

from collections.abc import Callable
from dataclasses import dataclass

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


def between(first: str, second: str, repair: str, at: int | str = CUTS, note: str = "") -> Contrast:
    """Return the contrast of two criteria after the same repair."""
    return Contrast(
        f"{first} - {second}{note}", repair, lambda block: gap(block, first, second, repair, at)
    )


def stale_minus_anew(at: int | str = CUTS, note: str = "") -> Contrast:
    """Return by how much more Taylor leads random removal where statistics are stale."""
    return Contrast(
        f"(taylor - random) stale - made anew{note}",
        "stale, 0 steps",
        lambda block: (
            gap(block, "taylor", "random", "stale", at) - gap(block, "taylor", "random", NONE, at)
        ),
    )


def recovery(block: Block) -> np.ndarray:
    """Return what fine-tuning gains on all training pictures, mean of all criteria."""
    gains = [
        block.accuracy(name, LONG) - block.accuracy(name, NONE) for name in block.measured(LONG)
    ]
    return np.mean(gains, axis=0)


def primary(most: int, some: int, few: int) -> dict[int, Contrast]:
    """Return the contrasts of contrasts.md by their numbers there.

    ``most``, ``some`` and ``few`` are the numbers of pictures that Shapley values see: 256, 64 and
    16, or one number in the second blocks, where the contrast of two numbers is left out.
    """
    mean, best = f"shapley mean {most}", f"shapley mean_plus_2_std {most}"
    found = [
        stale_minus_anew(),
        between("taylor", "random", NONE),
        between(mean, "taylor", NONE),
        between(f"shapley mean_abs {some}", f"shapley mean {some}", NONE),
        between(f"shapley mean_plus_2_std {some}", f"shapley mean {some}", NONE),
        between(mean, f"shapley mean {few}", NONE),
        between("taylor", "taylor_signed", NONE),
        between("taylor", "random", LONG),
        between(mean, "random", LONG),
        between(best, "taylor", FEW),
        between(best, "weight_norm", FEW),
        Contrast("160 steps - 0 steps, all criteria", f"{LONG}, {NONE}", recovery),
    ]
    return {n: each for n, each in enumerate(found, 1) if each.name != f"{mean} - {mean}"}


def beside(most: int) -> list[Contrast]:
    """Return what is reported beside the primary contrasts, without a correction.

    The first cut of the first and the last cut of four, as planned; and, added when six networks
    were done, what takes the third and the tenth apart.
    """
    mean, best = f"shapley mean {most}", f"shapley mean_plus_2_std {most}"
    last = {"at": 6, "note": ", last cut"}
    return [
        stale_minus_anew(1, ", first cut"),
        between("taylor", "random", LONG, **last),
        between(mean, "random", LONG, **last),
        between(best, "taylor", FEW, **last),
        between(best, "weight_norm", FEW, **last),
        between(mean, "taylor_signed", NONE),
        between(f"shapley mean_abs {most}", "taylor", NONE),
        between(best, "random", FEW),
    ]


def contrasts(block: Block) -> pd.DataFrame:
    """Test what was planned; Holm's correction over the primary contrasts.

    ``p`` is that of the crossed model, for other networks and other pictures; ``p_flips`` is exact,
    for other networks on these pictures. ``p_holm`` adjusts the larger one: both must hold. (Four
    networks cannot have a ``p_flips`` below 0.125, nor two one below 0.5: second blocks are read by
    their intervals.)
    """
    names = [name.split() for name in block.measured(NONE) if name.startswith("shapley")]
    pictures = sorted({int(number) for *_, number in names})
    few, some, most = pictures[0], pictures[len(pictures) // 2], pictures[-1]
    rows = [row(each, block, number) for number, each in primary(most, some, few).items()]
    rows += [row(each, block) for each in beside(most)]
    table = pd.DataFrame(rows)
    own = table["number"] > 0
    larger = table.loc[own, ["p", "p_flips"]].max(axis=1, skipna=False)
    return table.assign(p_holm=pd.Series(holm(larger), table.index[own]))


def row(contrast: Contrast, block: Block, number: int = 0) -> dict[str, object]:
    """Return a contrast's mean, interval and p values on a block; number 0 was not primary."""
    values = contrast.of(block)
    found = crossed_mean(values)
    return {
        "block": block.name, "networks": len(block.networks), "contrast": contrast.name,
        "repair": contrast.where, "number": number,
        "mean": found.mean, "low": found.low, "high": found.high,
        "error_networks": found.networks, "error_pictures": found.pictures,
        "p": found.p, "p_flips": sign_flip_p(values.mean(1)),
        "p_equivalent": found.p_equivalent(MARGIN),
    }  # fmt: skip
