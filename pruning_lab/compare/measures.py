"""The numbers of the curves: by run, to be compared, and as a table of steps."""

import numpy as np
import pandas as pd

from pruning_lab.compare.runs import check_comparable, main_track, measure_of, rows_of
from pruning_lab.compare.style import in_order, style_of
from pruning_lab.errors import UserError
from pruning_lab.records.step import SCRATCH, STALE, UNTUNED
from pruning_lab.tasks.task import MEASURE

SPEED_UPS = (2, 4, 8, 16, 32)
"""Theoretical speed-ups: the original's FLOPs over the remaining ones."""

ABOUT = ["metric", "model", "dataset", "baseline", "block", "seed"]
"""Columns copied to a run's row, besides those of its measure."""


def measure_runs(frame: pd.DataFrame, split: str = "test") -> pd.DataFrame:
    """Return one row per run: areas under its curves, values at speed-ups, and final sizes.

    ``area_<x>_<when>``: mean of the primary measure over the removed share of ``flops`` or
    ``parameters``, from 0 to the largest share that all runs reached, with straight lines between
    steps. ``<measure>_<s>x_<when>`` (``rmse_4x_after``): the primary measure at a
    theoretical speed-up of s, on the line between two steps; NaN if the run did not reach it.
    ``when`` is ``stale`` (neither recalibrated nor fine-tuned, if there is such a track),
    ``untuned`` (never fine-tuned, likewise), ``before`` (recalibrated after a cut) or ``after``
    (fine-tuned). ``<measure>_scratch``: the remaining network, trained from scratch. ``speed_up``,
    ``compression``, ``latency_ratio``: the original's FLOPs, parameters and measured latency over
    those after the last step.

    ``frame`` has one row per run, track and step, as from ``read_runs``; ``split`` is ``"test"`` or
    ``"val"``. Raises UserError for a run that removed nothing, which has no curve, and for runs
    with different fine-tuning, which cannot be averaged.
    """
    check_comparable(frame, ["finetune"])
    runs, measure = _by_run(main_track(frame)), measure_of(frame).name
    table = runs[[*ABOUT, *(key for key in MEASURE if key in frame)]].first()
    curves = {"before": (runs, "before"), "after": (runs, "after")}
    for track in (UNTUNED, STALE):
        if not (rows := rows_of(frame, track)).empty:
            curves = {track: (_by_run(rows), "after")} | curves
    for when, (rows, measured) in curves.items():
        values = f"{split}_{measure}_{measured}"
        for x in ("flops", "parameters"):
            table[f"area_{x}_{when}"] = _areas(rows, f"removed_{x}", values)
        curve = rows[["removed_flops", values]]
        for s in SPEED_UPS:
            table[f"{measure}_{s}x_{when}"] = curve.apply(_value_at, 1 - 1 / s)
    scratch = rows_of(frame, SCRATCH)
    if not scratch.empty:
        table[f"{measure}_scratch"] = scratch.set_index("run_id")[f"{split}_{measure}_after"]
    for name, column in (("speed_up", "flops"), ("compression", "parameters"),
                         ("latency_ratio", "latency_ms")):  # fmt: skip
        table[name] = runs[column].first() / runs[column].last()
    return table.reset_index()


def _by_run(frame: pd.DataFrame) -> "pd.api.typing.DataFrameGroupBy":
    return frame.sort_values("step", kind="stable").groupby("run_id", sort=False)


def _areas(runs: "pd.api.typing.DataFrameGroupBy", removed: str, values: str) -> pd.Series:
    """Return each run's mean of ``values`` from 0 to the share that all runs reached."""
    ends = runs[removed].max()
    reached = ends.min()
    if not reached > 0:
        raise UserError(f"The run {ends.idxmin()} removed nothing: there is no curve to compare.")

    def mean(curve: pd.DataFrame) -> float:
        inside, end = curve[curve[removed] <= reached], _value_at(curve, reached)
        area = np.trapezoid([*inside[values], end], [*inside[removed], reached])
        return float(area / reached)

    return runs[[removed, values]].apply(mean)


def _value_at(curve: pd.DataFrame, share: float) -> float:
    """Return the value at a removed share, on the line between two steps; NaN beyond the last.

    ``curve`` has two columns, shares and values; of steps with the same share the last one counts.
    """
    removed, values = curve.columns
    last = curve.drop_duplicates(removed, keep="last")
    return float(np.interp(share, last[removed], last[values], right=np.nan))


def quality_table(frame: pd.DataFrame, split: str = "test") -> pd.DataFrame:
    """Return the primary measure of the main track before and after fine-tuning: "96.1 → 97.8".

    One row per criterion and one column per step, headed by the share of FLOPs that the runs
    actually removed (lowest to highest if they differ); the cells are means over blocks (or runs).
    ``frame`` and ``split`` are as for ``quality_curves``. Raises UserError if there are no runs,
    or runs of different experiments.
    """
    check_comparable(frame)
    frame, measure = main_track(frame), measure_of(frame)
    removed = 100 * frame.groupby("step")["removed_flops"].agg(["min", "max"])
    heads = {step: _interval(low, high) for step, low, high in removed.itertuples()}
    measured = [f"{split}_{measure.name}_before", f"{split}_{measure.name}_after"]
    unit = "block" if "block" in frame else "run_id"  # repeats count once, as in the curves
    means = frame.groupby(["metric", unit, "step"])[measured].mean()
    means = means.groupby(["metric", "step"]).mean()
    cells = means.apply(lambda row: " → ".join(map(measure.tenths, row)), axis="columns")
    table = cells.unstack("step").loc[in_order(frame["metric"])]
    table.insert(0, "runs", frame.groupby("metric")["run_id"].nunique())
    table.index = pd.Index([style_of(name).label for name in table.index], name="criterion")
    return table.rename(columns=heads).rename_axis(columns=None)


def _interval(low: float, high: float) -> str:
    ends = dict.fromkeys(f"{value:.1f}" for value in (low, high))
    return f"{'-'.join(ends)} %"
