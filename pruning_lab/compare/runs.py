"""Which runs may share a figure, and what tells their criteria apart."""

import json

import pandas as pd

from pruning_lab.errors import UserError
from pruning_lab.track import MAIN

GIVEN = "given weights"
"""The block of networks that were not trained by the program."""

SHARED = ("model", "dataset", "schedule", "finetune", "setting")
"""What runs have in common whose curves can be compared; ``setting`` hashes all the details."""


def rows_of(frame: pd.DataFrame, track: str) -> pd.DataFrame:
    """The rows of one track; a frame without the column has the main one alone."""
    if "track" not in frame:
        return frame if track == MAIN else frame.iloc[:0]
    return frame[frame["track"] == track]


def main_track(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of the runs' own tracks, without their controls."""
    return rows_of(frame, MAIN)


def was_finetuned(frame: pd.DataFrame, split: str = "test") -> bool:
    """Return True if the main tracks were fine-tuned, even if that was undone at every step.

    Older runs do not record it: there, if an accuracy or a loss changed after a step's training.
    """
    frame = main_track(frame)
    if "finetune_kept" in frame and frame["finetune_kept"].notna().any():
        return True
    for what in ("accuracy", "loss"):
        before, after = f"{split}_{what}_before", f"{split}_{what}_after"
        if after in frame:
            measured = frame[after].notna()
            if (frame.loc[measured, after] != frame.loc[measured, before]).any():
                return True
    return False


def check_comparable(frame: pd.DataFrame) -> None:
    """UserError unless there are runs, all of one experiment: a mean over others means nothing."""
    if frame.empty:
        raise UserError("there are no runs to draw: the frame is empty")
    for column in SHARED:
        values = sorted(frame[column].unique()) if column in frame else []
        if len(values) > 1:
            raise UserError(
                f"the runs differ in {column} ({', '.join(values)}), so they cannot share a "
                f"curve; keep one, for example frame[frame[{column!r}] == {values[0]!r}]"
            )


def comparable(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The runs in groups that may share a figure, by a name for each; criteria told apart.

    Columns that only other groups have (the widths of another model's layers) are left out.
    """
    if frame.empty:
        return {}
    groups = frame.groupby(list(SHARED), sort=False)
    return {
        "-".join(key): told_apart(group).dropna(axis="columns", how="all") for key, group in groups
    }


def told_apart(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame, with the options in the name of a criterion that ran with several.

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
