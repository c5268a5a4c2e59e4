"""One row a run: what its curves come to, so that runs can be compared."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from pruning_lab.compare.runs import main_track, rows_of
from pruning_lab.errors import UserError
from pruning_lab.track import SCRATCH, STALE, UNTUNED

SPEED_UPS = (2, 4, 8, 16, 32)
"""The original's FLOPs over those that are left."""

ABOUT = ["metric", "model", "dataset", "baseline", "block", "seed"]


def measure_runs(frame: pd.DataFrame, split: str = "test") -> pd.DataFrame:
    """One row a run: areas under its curves, accuracies at fixed speed-ups, and what it reached.

    ``area_<x>_<when>``: the mean accuracy over shares removed of ``flops`` or ``parameters``, from
    0 to the largest that all runs reached, by straight lines between the steps.
    ``accuracy_<s>x_<when>``: the accuracy at a theoretical speed-up of s, on the line between two
    steps; NaN where the run did not get there. ``when`` is ``stale`` (neither recalibrated nor
    fine-tuned, where there is such a track), ``untuned`` (never fine-tuned, likewise), ``before``
    (recalibrated after a cut) or ``after`` (fine-tuned).
    ``accuracy_scratch``: what is left, trained from scratch. ``speed_up``, ``compression``,
    ``latency_ratio``: the original's FLOPs, parameters and measured latency over those after the
    last step.

    Args:
        frame: one row per run, track and step, as ``read_runs`` gives it.
        split: ``"test"`` or ``"val"``.

    Raises:
        UserError: for a run that removed nothing, so that there is no curve, and for runs of
            several fine-tunings, whose mean would mean nothing.
    """
    if "finetune" in frame and len(names := sorted(frame["finetune"].unique())) > 1:
        raise UserError(
            f"The runs differ in finetune ({', '.join(names)}); keep one, for example "
            f"frame[frame['finetune'] == {names[0]!r}]."
        )
    runs = _by_run(main_track(frame))
    found = runs[ABOUT].first()
    curves = {"before": (runs, "before"), "after": (runs, "after")}
    for track in (UNTUNED, STALE):
        if not (rows := rows_of(frame, track)).empty:
            curves = {track: (_by_run(rows), "after")} | curves
    for when, (rows, measured) in curves.items():
        accuracy = f"{split}_accuracy_{measured}"
        for x in ("flops", "parameters"):
            found[f"area_{x}_{when}"] = _areas(rows, f"removed_{x}", accuracy)
        for speed_up in SPEED_UPS:
            at = _at(1 - 1 / speed_up, accuracy)
            found[f"accuracy_{speed_up}x_{when}"] = rows[["removed_flops", accuracy]].apply(at)
    scratch = rows_of(frame, SCRATCH)
    if not scratch.empty:
        found["accuracy_scratch"] = scratch.set_index("run_id")[f"{split}_accuracy_after"]
    for name, of in (("speed_up", "flops"), ("compression", "parameters"),
                     ("latency_ratio", "latency_ms")):  # fmt: skip
        found[name] = runs[of].first() / runs[of].last()
    return found.reset_index()


def _by_run(frame: pd.DataFrame) -> "pd.api.typing.DataFrameGroupBy":
    return frame.sort_values("step", kind="stable").groupby("run_id", sort=False)


def _areas(runs: "pd.api.typing.DataFrameGroupBy", removed: str, accuracy: str) -> pd.Series:
    """The mean accuracy of each run from 0 to the share that all runs reached."""
    most = runs[removed].max()
    reached = most.min()
    if not reached > 0:
        raise UserError(f"The run {most.idxmin()} removed nothing: there is no curve to compare.")

    def mean(run: pd.DataFrame) -> float:
        inside, last = run[run[removed] <= reached], _last_of_each(run, removed)
        end = np.interp(reached, last[removed], last[accuracy])
        area = np.trapezoid([*inside[accuracy], end], [*inside[removed], reached])
        return float(area / reached)

    return runs[[removed, accuracy]].apply(mean)


def _last_of_each(run: pd.DataFrame, removed: str) -> pd.DataFrame:
    """Of steps that removed nothing more, the last: between two shares there is one line."""
    return run.drop_duplicates(removed, keep="last")


def _at(share: float, accuracy: str) -> Callable[[pd.DataFrame], float]:
    def value(run: pd.DataFrame) -> float:
        last = _last_of_each(run, "removed_flops")
        return float(np.interp(share, last["removed_flops"], last[accuracy], right=np.nan))

    return value
