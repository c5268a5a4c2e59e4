"""Rank criteria over several models and data sets."""

import pandas as pd

from pruning_lab.compare.friedman import critical_difference
from pruning_lab.compare.measures import measure_runs
from pruning_lab.compare.pairs import by_block, complete
from pruning_lab.compare.report import Section
from pruning_lab.compare.runs import measure_of, told_apart
from pruning_lab.compare.statistics import ALPHA, ranking
from pruning_lab.compare.style import in_order
from pruning_lab.compare.words import on_ranking
from pruning_lab.tasks.task import MEASURE

PAIR = "pair of model and data set"


def across(runs: pd.DataFrame) -> list[Section]:
    """Run Friedman's test with pairs of model and data set as blocks (Demšar, JMLR 7, 2006).

    ``runs`` may come from any experiments. The value of a criterion on a pair is the area under the
    curve of the primary measure over FLOPs, averaged over the pair's blocks. Pairs are ranked
    together if they have the same measure and the same names of schedule and fine-tuning; their
    settings may differ, and of several settings of a pair the one with the most runs counts.
    Return a section per such group with at least two pairs that share three criteria.
    """
    keys = ["schedule", "finetune", *(key for key in MEASURE if key in runs)]
    kinds = told_apart(runs).groupby(keys, sort=False)
    ranked = (_ranked(f"{name[0]}, {name[1]}", rows) for name, rows in kinds)
    return [section for section in ranked if section is not None]


def _ranked(task: str, runs: pd.DataFrame) -> Section | None:
    means, words, measure = {}, [], measure_of(runs)
    for (model, dataset), settings in runs.groupby(["model", "dataset"], sort=False):
        pair = f"{model} on {dataset}"
        counts = settings.groupby("setting", sort=False)["run_id"].nunique()
        words += [f"{pair}: the setting {name} is left out, it has fewer runs than another."
                  for name in counts.index if name != counts.idxmax()]  # fmt: skip
        chosen = settings[settings["setting"] == counts.idxmax()]
        table, gaps = complete(by_block(measure_runs(chosen), "area_flops_after"))
        words += [f"{pair}: {sentence}" for sentence in gaps]
        if table.empty:
            words.append(f"{pair} is left out: its criteria share no block.")
        else:
            means[pair] = table.mean()
    rows = pd.DataFrame(means).T.rename_axis("pair")
    table, gaps = complete(rows[in_order(rows.columns)], PAIR)
    if len(table) < 2 or table.shape[1] < 3:
        return None
    ranked = ranking(table if measure.higher_is_better else -table)
    title = f"Mean ranks by mean {measure.label}, {len(table)} pairs of model and data set"
    if ranked.p >= ALPHA:
        title += "\n(Friedman's test finds no difference)"
    what = (
        f"Mean {measure.label} is the area under the curve over the share of FLOPs removed, "
        "divided by its width, at the end of each step, averaged over the blocks of a pair. The "
        "test takes pairs for independent; those that share a model or a data set are not quite. "
        "Pairs have a schedule and fine-tuning of the same name; their settings may differ, the "
        "pairs' own reports have them."
    )
    return Section(
        f"Over models and data sets: {task}",
        [*words, *gaps, what, on_ranking(ranked, "pairs of model and data set")],
        {f"critical_difference_{_file(task)}": critical_difference(ranked, title)},
        {f"mean_{measure.name}_{_file(task)}": table},
        measure,
    )


def _file(task: str) -> str:
    return task.replace(", ", "_")
