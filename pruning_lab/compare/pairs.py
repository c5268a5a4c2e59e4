"""Compare criteria in pairs, within blocks of runs that start from the same network."""

from itertools import combinations

import pandas as pd

from pruning_lab.compare.statistics import holm, paired, sign_flip_p
from pruning_lab.compare.style import in_order, style_of
from pruning_lab.errors import UserError

COLUMNS = ["better", "worse", "difference", "low", "high", "p", "p_exact", "p_holm", "pairs",
           "detectable"]  # fmt: skip
"""Columns of ``differences``."""


def by_block(measured: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Return a row per block and a column per criterion, means over a criterion's runs in a block.

    Runs of a block start from the same trained network. NaN if a criterion has no run.
    """
    means = measured.groupby(["block", "metric"])[measure].mean().unstack("metric")
    return means[in_order(measured["metric"])]


def complete(table: pd.DataFrame, block: str = "block") -> tuple[pd.DataFrame, list[str]]:
    """Return the blocks of ``by_block`` that all criteria have, and sentences on those left out.

    Criteria with fewer than two blocks are left out first, as they would leave too few blocks.
    """
    counts = table.notna().sum()
    few = [str(name) for name in table.columns if counts[name] < 2]
    if len(few) == table.shape[1]:
        return table.dropna(), []
    words = [
        f"{style_of(name).label} is left out: it has {counted(counts[name], block)}."
        for name in few
    ]
    table = table.drop(columns=few).dropna(how="all")
    gaps = table[table.isna().any(axis=1)]
    for name, row in gaps.iterrows():
        lacking = ", ".join(style_of(str(metric)).label for metric in row.index[row.isna()])
        words.append(f"The {block} {name} is left out: it lacks {lacking}.")
    return table.drop(index=gaps.index), words


def counted(count: int, one: str, many: str = "") -> str:
    """Return ``1 block`` or ``2 blocks``; ``many`` is the plural if it is irregular."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def differences(table: pd.DataFrame, higher_is_better: bool = True) -> pd.DataFrame:
    """Compare every pair of criteria over the blocks of a complete ``by_block``: one row per pair.

    ``COLUMNS`` are the two criteria, the mean advantage of the better one (never negative) with its
    95 % interval, its p value by Student's t, the exact one by sign flips, the first adjusted for
    all pairs by Holm, the number of blocks, and the difference that would be found with a
    probability of 80 % among all pairs. Raises UserError for fewer than two blocks.
    """
    if len(table) < 2:
        raise UserError(
            f"All criteria share {counted(len(table), 'block')}; a comparison needs at "
            "least two. Run more seeds: seed=0,1,2."
        )
    rows, pairs = [], list(combinations(table.columns, 2))
    for pair in pairs:
        better, worse = sorted(pair, key=lambda name: table[name].mean(), reverse=higher_is_better)
        advantage = (table[better] - table[worse]) * (1 if higher_is_better else -1)
        result = paired(advantage, comparisons=len(pairs))
        about = {"better": better, "worse": worse, "difference": result.mean}
        rows.append(about | vars(result) | {"p_exact": sign_flip_p(advantage)})
    frame = pd.DataFrame(rows, columns=COLUMNS)
    return frame.assign(p_holm=holm(frame["p"].to_list()))
