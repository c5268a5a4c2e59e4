"""The numbers behind the curves, as a table to read."""

import pandas as pd

from pruning_lab.compare.runs import check_comparable, main_track
from pruning_lab.compare.style import in_order, style_of


def accuracy_table(frame: pd.DataFrame, split: str = "test") -> pd.DataFrame:
    """Accuracy (%) before and after fine-tuning, mean over blocks (or runs): "96.1 -> 97.8".

    Of the main track, which is fine-tuned after every step.

    One row a criterion, one column a step, headed by the share of FLOPs that the runs really
    removed (lowest to highest where they differ). ``frame`` is as for ``accuracy_curves``.

    Raises:
        UserError: when there are no runs, or runs of different experiments.
    """
    check_comparable(frame)
    frame = main_track(frame)
    removed = 100 * frame.groupby("step")["removed_flops"].agg(["min", "max"])
    heads = {step: _interval(low, high) for step, low, high in removed.itertuples()}
    measured = [f"{split}_accuracy_before", f"{split}_accuracy_after"]
    within = ["metric", "block", "step"] if "block" in frame else ["metric", "run_id", "step"]
    blocks = frame.groupby(within)[measured].mean()  # repeats count once, as in the curves
    means = 100 * blocks.groupby(["metric", "step"]).mean()
    cells = means.apply(lambda row: " → ".join(f"{value:.1f}" for value in row), axis="columns")
    table = cells.unstack("step").loc[in_order(frame["metric"])]
    runs = frame.groupby("metric")["run_id"].nunique()
    table.insert(0, "runs", runs)
    table.index = pd.Index([style_of(name).label for name in table.index], name="criterion")
    return table.rename(columns=heads).rename_axis(columns=None)


def markdown(table: pd.DataFrame) -> str:
    """A frame as a Markdown table, its index as the first column."""
    rows = table.reset_index().astype(str)
    lines = [list(rows.columns), ["---", *["---:"] * (rows.shape[1] - 1)], *rows.to_numpy()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _interval(low: float, high: float) -> str:
    ends = dict.fromkeys(f"{value:.1f}" for value in (low, high))
    return f"{'-'.join(ends)} %"
