"""The numbers of the curves as a table."""

import pandas as pd

from pruning_lab.compare.runs import check_comparable, main_track, measure_of
from pruning_lab.compare.style import in_order, style_of


def quality_table(frame: pd.DataFrame, split: str = "test") -> pd.DataFrame:
    """Return the primary measure of the main track before and after fine-tuning: "96.1 → 97.8".

    One row per criterion and one column per step, headed by the share of FLOPs that the runs
    actually removed (lowest to highest if they differ); the cells are means over blocks (or runs).
    ``frame`` is as for ``quality_curves``.

    Raises:
        UserError: if there are no runs, or runs of different experiments.
    """
    check_comparable(frame)
    frame, measure = main_track(frame), measure_of(frame)
    removed = 100 * frame.groupby("step")["removed_flops"].agg(["min", "max"])
    heads = {step: _interval(low, high) for step, low, high in removed.itertuples()}
    measured = [f"{split}_{measure.name}_before", f"{split}_{measure.name}_after"]
    within = ["metric", "block", "step"] if "block" in frame else ["metric", "run_id", "step"]
    blocks = frame.groupby(within)[measured].mean()  # repeats count once, as in the curves
    means = blocks.groupby(["metric", "step"]).mean()
    cells = means.apply(lambda row: " → ".join(map(measure.tenths, row)), axis="columns")
    table = cells.unstack("step").loc[in_order(frame["metric"])]
    runs = frame.groupby("metric")["run_id"].nunique()
    table.insert(0, "runs", runs)
    table.index = pd.Index([style_of(name).label for name in table.index], name="criterion")
    return table.rename(columns=heads).rename_axis(columns=None)


def markdown(table: pd.DataFrame) -> str:
    """Return a frame as a Markdown table, its index as the first column."""
    rows = table.reset_index().astype(str)
    lines = [list(rows.columns), ["---", *["---:"] * (rows.shape[1] - 1)], *rows.to_numpy()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _interval(low: float, high: float) -> str:
    ends = dict.fromkeys(f"{value:.1f}" for value in (low, high))
    return f"{'-'.join(ends)} %"
