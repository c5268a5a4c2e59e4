"""Ranks of criteria over several models and data sets."""

from collections.abc import Mapping

import pandas as pd

from pruning_lab.compare.measures import measure_runs
from pruning_lab.compare.pairs import by_block, complete
from pruning_lab.compare.ranks import critical_difference
from pruning_lab.compare.report import Section
from pruning_lab.compare.statistics import ALPHA, ranking
from pruning_lab.compare.style import in_order, style_of
from pruning_lab.compare.words import on_ranking

MEASURE = "area_flops_after"


def across(groups: Mapping[str, pd.DataFrame]) -> Section | None:
    """Friedman's test with a pair of model and data set as the block (Demšar, JMLR 7, 2006).

    ``groups`` is what ``comparable`` gives. Each is one value a criterion: the mean over its
    blocks of the mean accuracy at the end of the steps. Of several settings of a pair the one with
    the most runs counts. None unless two pairs share three criteria.
    """
    means, words = {}, []
    for pair, same in _by_pair(groups).items():
        chosen = max(same, key=lambda name: groups[name]["run_id"].nunique())
        words += [f"{name} is left out: {chosen} has the same model and data set."
                  for name in same if name != chosen]  # fmt: skip
        table, _ = complete(by_block(measure_runs(groups[chosen]), MEASURE))
        means[pair] = table.mean()
    rows = pd.DataFrame(means).T.rename_axis("model and data set")
    table, gaps = complete(rows[in_order(rows.columns)])
    if len(table) < 2 or table.shape[1] < 3:
        return None
    ranked = ranking(table)
    title = f"Mean ranks by mean accuracy, {len(table)} pairs of model and data set"
    if ranked.p >= ALPHA:
        title += "\n(Friedman's test finds no difference)"
    what = "Mean accuracy at the end of each step, per cent, averaged over seeds."
    return Section(
        "Over models and data sets",
        [*words, *gaps, what, on_ranking(ranked, "pairs of model and data set")],
        {"critical_difference": critical_difference(ranked, title)},
        {"mean_accuracy": (100 * table).round(2).rename(columns=_label)},
    )


def _label(criterion: object) -> str:
    return style_of(str(criterion)).label


def _by_pair(groups: Mapping[str, pd.DataFrame]) -> dict[str, list[str]]:
    """The names of the groups of each pair of model and data set."""
    found: dict[str, list[str]] = {}
    for name, runs in groups.items():
        first = runs.iloc[0]
        found.setdefault(f"{first['model']} on {first['dataset']}", []).append(name)
    return found
