"""Choose each criterion's best value of a setting on ``val``, and keep the runs with it."""

from collections.abc import Iterable, Sequence

import pandas as pd

from pruning_lab.compare.report import Section, mean_and_half_width
from pruning_lab.compare.runs import main_track, measure_of
from pruning_lab.compare.statistics import counted
from pruning_lab.compare.style import in_order, style_of
from pruning_lab.errors import UserError
from pruning_lab.tasks.task import Measure

Value = float | str


def best_runs(
    runs: pd.DataFrame, key: str, values: Sequence[Value] = ()
) -> tuple[pd.DataFrame, Section]:
    """Return the runs with each criterion's best value of a setting, and how it was chosen.

    ``runs`` is one of the frames of ``comparable``, with the setting (``finetune.lr`` for example)
    in the column ``key``; ``values`` are those to choose among, by default all that were tried. The
    best value has the best mean of the primary measure on ``val`` after the last step, over the
    blocks; of ties the first in ascending order. Every criterion must have been tried with the same
    values in the same blocks. Raises UserError for a ``key`` or ``values`` that no run has, fewer
    than two values, and missing trials.
    """
    if key not in runs:
        raise UserError(f"these runs have no {key}. Choose a setting that they were run with.")
    if unknown := set(values) - set(runs[key]):
        raise UserError(
            f"no run has {key}={_shown(unknown)}; there are: {_shown(runs[key].unique())}."
        )
    tried = runs[runs[key].isin(values)] if values else runs
    trials, measure = _trials(tried, key), measure_of(runs)
    means = trials.mean().unstack(key)[_ascending(tried[key].unique())]
    best = means.idxmax(axis=1) if measure.higher_is_better else means.idxmin(axis=1)
    chosen = tried[tried[key] == tried["metric"].map(best)]
    return chosen, _section(trials, means, best, key, measure)


def _trials(runs: pd.DataFrame, key: str) -> pd.DataFrame:
    """Return the measure on val after the last step, (blocks, criteria x values), without gaps."""
    last = main_track(runs).sort_values("step", kind="stable").groupby("run_id").tail(1)
    criteria, values = last["metric"].unique(), last[key].unique()
    if len(values) < 2:
        raise UserError(
            f"all runs have {key}={_shown(values)}: there is nothing to choose from. "
            f"Run every criterion with several values, -m {key}=VALUE,VALUE."
        )
    column = f"val_{measure_of(runs).name}_after"
    trials = last.groupby(["block", "metric", key], sort=False)[column].mean()
    pairs = pd.MultiIndex.from_product([criteria, values], names=["metric", key])
    trials = trials.unstack(["metric", key]).reindex(columns=pairs)
    missing = trials.isna().unstack()
    if missing.any():
        metric, value, block = missing.idxmax()
        raise UserError(
            f"{missing.sum()} of {missing.size} trials are missing, for example "
            f"{style_of(metric).label} with {key}={_shown([value])} in the block {block}. The "
            f"choice needs {key}={_shown(values)} for each of "
            f"{', '.join(style_of(name).label for name in in_order(criteria))}. Other runs "
            f"in the store count, too: choose among the values of your sweep (--best {key}=VALUE,"
            "VALUE), read its runs alone (--experiment, --tag, --since), or give its command again "
            "if a job failed."
        )
    return trials


def _section(
    trials: pd.DataFrame, means: pd.DataFrame, best: pd.Series, key: str, measure: Measure
) -> Section:
    """Describe the choice: the mean of every trial on val, and the values chosen."""
    rows, at_edge = {}, []
    for metric in in_order(means.index):
        label, chosen = style_of(metric).label, best[metric]
        cells = {
            f"{key}={_shown([value])}": mean_and_half_width(trials[metric, value], measure.tenths)
            for value in means.columns
        }
        rows[label] = cells | {"chosen": _shown([chosen])}
        if isinstance(chosen, float) and chosen in (means.columns[0], means.columns[-1]):
            at_edge.append(label)
    words = [
        f"Each criterion is reported with a {key} of its own: of {_shown(means.columns)}, which "
        f"all criteria were tried with, the one with the best mean validation {measure.label} "
        f"after the last step over {counted(len(trials), 'block')}. The table has these means"
        f"{' in per cent' if measure.unit == '%' else ''}, with half the 95 % interval over the "
        "blocks. The test split had no part in the choice."
    ]
    if at_edge:
        words.append(
            f"The smallest or largest value was the best one for {', '.join(at_edge)}: a better "
            "one may lie beyond."
        )
    table = pd.DataFrame(rows).T.rename_axis("criterion")
    return Section(f"Choice of {key}", words, tables={"choice": table})


def _ascending(values: Iterable[Value]) -> list[Value]:
    """Return numbers in ascending order, then texts."""
    return sorted(values, key=lambda value: (isinstance(value, str), value))


def _shown(values: Iterable[Value]) -> str:
    return ", ".join(v if isinstance(v, str) else f"{v:g}" for v in _ascending(values))
