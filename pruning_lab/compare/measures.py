"""Summarise the curves of each run in one row, so that runs can be compared."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from pruning_lab.compare.runs import main_track, measure_of, rows_of
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
    steps. ``<measure>_<s>x_<when>``, ``accuracy_4x_after`` for example: the measure at a
    theoretical speed-up of s, on the line between two steps; NaN if the run did not reach it.
    ``when`` is ``stale`` (neither recalibrated nor fine-tuned, if there is such a track),
    ``untuned`` (never fine-tuned, likewise), ``before`` (recalibrated after a cut) or ``after``
    (fine-tuned). ``<measure>_scratch``: the remaining network, trained from scratch. ``speed_up``,
    ``compression``, ``latency_ratio``: the original's FLOPs, parameters and measured latency over
    those after the last step.

    Args:
        frame: one row per run, track and step, as from ``read_runs``.
        split: ``"test"`` or ``"val"``.

    Raises:
        UserError: for a run that removed nothing, which has no curve, and for runs with different
            fine-tuning, which cannot be averaged.
    """
    if "finetune" in frame and len(names := sorted(frame["finetune"].unique())) > 1:
        raise UserError(
            f"The runs differ in finetune ({', '.join(names)}); keep one, for example "
            f"frame[frame['finetune'] == {names[0]!r}]."
        )
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
        for speed_up in SPEED_UPS:
            value = _at(1 - 1 / speed_up, values)
            table[f"{measure}_{speed_up}x_{when}"] = rows[["removed_flops", values]].apply(value)
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

    def mean(run: pd.DataFrame) -> float:
        inside, last = run[run[removed] <= reached], _last_of_each(run, removed)
        end = np.interp(reached, last[removed], last[values])
        area = np.trapezoid([*inside[values], end], [*inside[removed], reached])
        return float(area / reached)

    return runs[[removed, values]].apply(mean)


def _last_of_each(run: pd.DataFrame, removed: str) -> pd.DataFrame:
    """Keep only the last step of each share, so that one line joins two shares."""
    return run.drop_duplicates(removed, keep="last")


def _at(share: float, values: str) -> Callable[[pd.DataFrame], float]:
    def value(run: pd.DataFrame) -> float:
        last = _last_of_each(run, "removed_flops")
        return float(np.interp(share, last["removed_flops"], last[values], right=np.nan))

    return value
