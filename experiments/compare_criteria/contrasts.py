"""The contrasts that were planned in contrasts.md before the first network, and their tests."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from experiments.compare_criteria.records import CUTS, FEW, LONG, NONE, Block
from experiments.crossed import crossed_mean
from pruning_lab.compare import holm
from pruning_lab.compare.statistics import sign_flip_p

MARGIN = 0.5
"""Points of mean accuracy below which two criteria count as equivalent."""


@dataclass(frozen=True)
class Contrast:
    """A named difference of accuracies: ``of`` returns it by network and picture."""

    name: str
    where: str
    of: Callable[[Block], np.ndarray]


def gap(block: Block, first: str, second: str, repair: str, at: int | str = CUTS) -> np.ndarray:
    """Return the difference of two criteria after the same repair, (networks, pictures)."""
    return block.accuracy(first, repair, at) - block.accuracy(second, repair, at)


def between(first: str, second: str, repair: str, at: int | str = CUTS, note: str = "") -> Contrast:
    """Return the contrast of two criteria after the same repair."""
    return Contrast(
        f"{first} - {second}{note}", repair, lambda block: gap(block, first, second, repair, at)
    )


def stale_minus_anew(at: int | str = CUTS, note: str = "") -> Contrast:
    """Return the contrast of Taylor's lead over random: stale minus recomputed statistics."""
    return Contrast(
        f"(taylor - random) stale - made anew{note}",
        "stale, 0 steps",
        lambda block: (
            gap(block, "taylor", "random", "stale", at) - gap(block, "taylor", "random", NONE, at)
        ),
    )


def recovery(block: Block) -> np.ndarray:
    """Return the gain of fine-tuning on all training pictures, mean over all criteria."""
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
    planned = [
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
    return {n: item for n, item in enumerate(planned, 1) if item.name != f"{mean} - {mean}"}


def beside(most: int) -> list[Contrast]:
    """Return the secondary contrasts, which are reported without a correction.

    As planned: the first contrast at the first cut, and four contrasts at the last cut. Added when
    six networks were done: three that split up the third and the tenth contrast.
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
    """Test all contrasts, with Holm's correction over the primary ones.

    ``p`` (crossed model) generalises to other networks and pictures; ``p_flips`` (exact) to other
    networks on these pictures. ``p_holm`` adjusts the larger: both must hold. (``p_flips`` is at
    least 0.125 with four networks and 0.5 with two: second blocks are judged by their intervals.)
    """
    names = [name.split() for name in block.measured(NONE) if name.startswith("shapley")]
    pictures = sorted({int(number) for *_, number in names})
    few, some, most = pictures[0], pictures[len(pictures) // 2], pictures[-1]
    rows = [row(planned, block, number) for number, planned in primary(most, some, few).items()]
    rows += [row(secondary, block) for secondary in beside(most)]
    table = pd.DataFrame(rows)
    is_primary = table["number"] > 0
    larger = table.loc[is_primary, ["p", "p_flips"]].max(axis=1, skipna=False)
    return table.assign(p_holm=pd.Series(holm(larger), table.index[is_primary]))


def row(contrast: Contrast, block: Block, number: int = 0) -> dict[str, object]:
    """Return a contrast's mean, interval and p values on a block; secondary ones are number 0."""
    values = contrast.of(block)
    estimate = crossed_mean(values)
    return {
        "block": block.name, "networks": len(block.networks), "contrast": contrast.name,
        "repair": contrast.where, "number": number,
        "mean": estimate.mean, "low": estimate.low, "high": estimate.high,
        "error_networks": estimate.networks, "error_pictures": estimate.pictures,
        "p": estimate.p, "p_flips": sign_flip_p(values.mean(1)),
        "p_equivalent": estimate.p_equivalent(MARGIN),
    }  # fmt: skip
