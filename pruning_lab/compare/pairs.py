"""Criteria against each other, within blocks of runs that start from the same network."""

from itertools import combinations

import pandas as pd

from pruning_lab.compare.exact import sign_flip_p
from pruning_lab.compare.statistics import holm, paired
from pruning_lab.compare.style import in_order, style_of
from pruning_lab.errors import UserError


def by_block(measured: pd.DataFrame, measure: str) -> pd.DataFrame:
    """A row a block, a column a criterion; the mean where a criterion has several runs of it.

    Runs of a block start from the same trained network. NaN where a criterion has no run.
    """
    means = measured.groupby(["block", "metric"])[measure].mean().unstack("metric")
    return means[in_order(measured["metric"])]


def complete(table: pd.DataFrame, block: str = "block") -> tuple[pd.DataFrame, list[str]]:
    """The blocks of ``by_block`` that all criteria have, and sentences on what was left out.

    A criterion with fewer than two blocks goes first: it would leave nothing of the others.
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
        lacking = ", ".join(style_of(str(each)).label for each in row.index[row.isna()])
        words.append(f"The {block} {name} is left out: it lacks {lacking}.")
    return table.drop(index=gaps.index), words


def counted(count: int, one: str, many: str = "") -> str:
    """``1 block``, ``2 blocks``; ``many`` is the plural where it is another."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def differences(table: pd.DataFrame) -> pd.DataFrame:
    """Every pair of criteria over the blocks of a complete ``by_block``: one row a pair.

    Columns ``better worse difference low high p p_exact p_holm pairs detectable``: the mean of the
    first's advantage with its 95 % interval, its p value by Student's t and the exact one by sign
    flips, the first adjusted for all pairs by Holm, and the difference that would have been found
    among them all with a probability of 80 %. Raises UserError for fewer than two blocks.
    """
    if len(table) < 2:
        raise UserError(
            f"All criteria share {counted(len(table), 'block')}; two are the least for a "
            "comparison. Run more seeds: seed=0,1,2."
        )
    rows, pairs = [], list(combinations(table.columns, 2))
    for pair in pairs:
        better, worse = sorted(pair, key=lambda name: table[name].mean(), reverse=True)
        advantage = table[better] - table[worse]
        found = paired(advantage, comparisons=len(pairs))
        rows.append((better, worse, *vars(found).values(), sign_flip_p(advantage)))
    columns = ["better", "worse", "difference", "low", "high", "p", "pairs", "detectable"]
    frame = pd.DataFrame(rows, columns=[*columns, "p_exact"])
    frame.insert(6, "p_exact", frame.pop("p_exact"))
    frame.insert(7, "p_holm", holm(frame["p"].to_list()))
    return frame
