"""Group runs that may share a figure, and distinguish criteria by their options."""

import json
from collections.abc import Sequence

import pandas as pd

from pruning_lab.errors import UserError
from pruning_lab.records.step import MAIN
from pruning_lab.tasks.task import MEASURE, Measure, measure_from

GIVEN = "given weights"
"""Block of runs whose networks were not trained by the program."""

SHARED = ("model", "dataset", "schedule", "finetune", "setting")
"""Columns in which runs must agree for a comparison; ``setting`` is a hash of all the details."""


def measure_of(frame: pd.DataFrame) -> Measure:
    """Return the primary measure of the runs; classification's if not recorded (old versions).

    Raises UserError for runs of several measures.
    """
    columns = [key for key in MEASURE if key in frame]
    if not columns or frame.empty:
        return measure_from({})
    recorded = frame[columns].drop_duplicates()
    if len(recorded) > 1:
        names = ", ".join(recorded["measure"])
        raise UserError(
            f"The runs have several primary measures ({names}), and cannot be compared; keep one, "
            f"for example frame[frame['measure'] == {recorded['measure'].iloc[0]!r}]."
        )
    return measure_from(recorded.iloc[0].to_dict())


def rows_of(frame: pd.DataFrame, track: str) -> pd.DataFrame:
    """Return the rows of a track; a frame without the column has only the main track."""
    if "track" not in frame:
        return frame if track == MAIN else frame.iloc[:0]
    return frame[frame["track"] == track]


def main_track(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the main track of the ``frame``, without the controls."""
    return rows_of(frame, MAIN)


def was_finetuned(frame: pd.DataFrame, split: str = "test") -> bool:
    """Return True if the main tracks were fine-tuned, even if it was undone at every step.

    Older runs do not record it; for them, True if measure or loss changed in a step's training.
    """
    measure, frame = measure_of(frame).name, main_track(frame)
    if "finetune_kept" in frame and frame["finetune_kept"].notna().any():
        return True
    for name in (measure, "loss"):
        before, after = f"{split}_{name}_before", f"{split}_{name}_after"
        if after in frame and (frame[after].notna() & (frame[after] != frame[before])).any():
            return True
    return False


def check_comparable(frame: pd.DataFrame, columns: Sequence[str] = SHARED) -> None:
    """Raise UserError if there are no runs, or runs that differ in ``columns``."""
    if frame.empty:
        raise UserError("there are no runs to draw: the frame is empty")
    for column in columns:
        values = sorted(frame[column].unique()) if column in frame else []
        if len(values) > 1:
            raise UserError(
                f"The runs differ in {column} ({', '.join(values)}); keep one, for example "
                f"frame[frame[{column!r}] == {values[0]!r}]. Different ones cannot be averaged."
            )


def comparable(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the groups of runs of the ``frame`` that may share a figure, by name.

    Criteria that ran with several options have these in their names (``shapley samples=16``).
    Columns that only other groups use (the widths of another model's layers) are left out.
    """
    if frame.empty:
        return {}
    groups = frame.groupby(list(SHARED), sort=False)
    return {
        "-".join(key): told_apart(group).dropna(axis="columns", how="all") for key, group in groups
    }


def told_apart(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with options added to the names of criteria that ran with several.

    ``shapley samples=16`` and ``shapley samples=None``, for example.
    """
    names = {}
    for metric, texts in frame.groupby("metric")["metric_settings"].unique().items():
        settings = {text: json.loads(text) for text in texts}
        keys = dict.fromkeys(key for options in settings.values() for key in options)
        differ = [key for key in keys if len({str(s.get(key)) for s in settings.values()}) > 1]
        for text, options in settings.items():
            shown = "".join(f" {key}={options.get(key)}" for key in differ)
            names[metric, text] = f"{metric}{shown}"
    pairs = zip(frame["metric"], frame["metric_settings"], strict=True)
    return frame.assign(metric=[names[pair] for pair in pairs])
