"""``python -m pruning_lab.compare``: a report on recorded runs: figures, tables, one page."""

import argparse
import re
import shutil
import tempfile
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path

import pandas as pd

from pruning_lab.compare.best import Value, best_runs
from pruning_lab.compare.pages import write_report
from pruning_lab.compare.recorded import (
    baseline_scores,
    number_or_text,
    options,
    shared_options,
    tuned_scores,
    with_value,
)
from pruning_lab.compare.report import Section, across, sections
from pruning_lab.compare.runs import comparable
from pruning_lab.compare.statistics import counted
from pruning_lab.errors import UserError
from pruning_lab.tracking.read import Runs, find_runs
from pruning_lab.tracking.write import keep_report

ACROSS = "models_and_datasets"
"""Folder of the report over all models and data sets."""


def main() -> None:
    """Write a report on all finished runs, and keep it in MLflow.

    Runs that differ in more than criterion and seed get separate reports; with several models and
    data sets, one more report ranks the criteria over all of them. With ``--best`` a report has
    only the runs with each criterion's best value of a setting.
    """
    given = _parser().parse_args()
    try:
        tags = dict(_tag(text) for text in given.tag)
        key, values = _choice(given.best) if given.best else ("", [])
        recorded = find_runs(given.uri, given.experiment, tags, given.since, given.until)
        frame = recorded.frame
        if key and len(frame):
            frame = with_value(frame, given.uri, key)
        groups = comparable(frame)
        if not groups:
            reasons = "".join(f"\n{_left_out(row)}" for _, row in recorded.left_out.iterrows())
            names = ", ".join(given.experiment)
            raise UserError(f"No run of {names} that was asked for is finished.{reasons}")
    except UserError as error:
        raise SystemExit(str(error)) from None
    failed, reported = [], set[str]()
    for name, runs in groups.items():
        folder = given.output if len(groups) == 1 else given.output / name
        try:
            runs, chosen = best_runs(runs, key, values) if key else (runs, None)
            _publish(given, name, folder, runs, partial(_write, runs, recorded, given.uri, chosen))
        except UserError as error:
            failed.append(f"No report of {name}: {error}")
        else:
            reported |= set(runs["run_id"])
    frame = frame[frame["run_id"].isin(reported)]
    if reported and (parts := across(frame)):
        title = "Criteria over models and data sets"
        write = partial(write_report, title=title, about=[], parts=parts)
        _publish(given, ACROSS, given.output / ACROSS, frame, write)
    if failed:
        raise SystemExit("\n".join(failed))


def _publish(
    given: argparse.Namespace,
    name: str,
    folder: Path,
    runs: pd.DataFrame,
    write: Callable[[Path], object],
) -> None:
    """Write a report completely or not at all, print it, and keep it in MLflow."""
    with tempfile.TemporaryDirectory() as private:  # without other files in ``folder``
        new = Path(private) / "report"  # with the usual permissions, unlike a temporary folder
        write(new)
        shutil.copytree(new, folder, dirs_exist_ok=True)
        print((folder / "report.md").read_text(encoding="utf-8"))
        print(f"Report: {folder / 'report.html'}")
        if given.keep:
            experiment, count = given.experiment[0], runs["run_id"].nunique()
            try:
                run_id = keep_report(given.uri, experiment, f"report: {name}", new, count)
                print(f"Kept in MLflow as the run {run_id} of '{experiment}'.")
            except Exception as error:  # whatever the store's driver raises: the report is there
                print(f"Not kept in MLflow: {error}")


def _write(
    runs: pd.DataFrame, recorded: Runs, uri: str, chosen: Section | None, folder: Path
) -> None:
    """Write the report on comparable runs, and their frame as ``runs.csv``.

    ``chosen`` is the section on how the runs were chosen.
    """
    first, criteria = runs.iloc[0], runs.groupby("metric", sort=False)
    title = f"{first['model']} on {first['dataset']}: "
    title += counted(criteria.ngroups, "criterion", "criteria")
    counts = ", ".join(f"{name} {count}" for name, count in criteria["run_id"].nunique().items())
    about = [
        f"Schedule {first['schedule']}, fine-tuning {first['finetune']}, setting "
        f"{first['setting']}; {counted(runs['block'].nunique(), 'block')}; runs: {counts}.",
        *(
            f"{name}: {options(text)}."
            for name, text in criteria["metric_settings"].first().items()
        ),
        *(f"Left out: {_left_out(row)}." for _, row in recorded.left_out.iterrows()),
    ]
    parts = [] if chosen is None else [chosen]
    parts += sections(runs, baseline_scores(runs, uri), tuned_scores(runs, uri))
    parts.append(Section("What the runs share", tables={"shared": shared_options(runs, uri)}))
    write_report(folder, title, about, parts)
    runs.to_csv(folder / "runs.csv", index=False)


def _left_out(row: pd.Series) -> str:
    return f"{row['run']} ({row['run_id']}): {row['reason']}"


def _choice(text: str) -> tuple[str, list[Value]]:
    """Parse ``--best``: the setting to choose per criterion, and the values allowed (none: all)."""
    if not (match := re.fullmatch(r"([^=]+)(?:=([^=]+))?", text)):
        raise UserError(
            f"--best {text} is neither KEY nor KEY=VALUE,VALUE; write finetune.lr, or "
            "finetune.lr=0.003,0.01 for example."
        )
    return match[1], [number_or_text(value) for value in (match[2] or "").split(",") if value]


def _tag(text: str) -> tuple[str, str]:
    if not (match := re.fullmatch(r"([^=]+)=(.*)", text)):
        raise UserError(f"--tag {text} is not NAME=VALUE, metric=taylor for example.")
    return match[1], match[2]


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is no day; write it as 2026-01-31") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pruning_lab.compare", description=__doc__)
    add = parser.add_argument
    add("--uri", default="sqlite:///mlflow.db", help="where the runs are recorded")
    add("--experiment", nargs="+", default=["pruning_lab"], help="their MLflow experiments")
    add("--tag", action="append", default=[], metavar="NAME=VALUE", help="only runs with this tag")
    add("--since", type=_day, help="only runs begun on this day or later (UTC)")
    add("--until", type=_day, help="only runs begun on this day or earlier (UTC)")
    add(
        "--best", metavar="KEY[=VALUE,VALUE]",
        help="use only the runs with each criterion's best value of this setting on val "
        "(finetune.lr for example); every criterion must have been tried with the same values",
    )  # fmt: skip
    add("--no-keep", dest="keep", action="store_false", help="do not keep the report in MLflow")
    add("--output", type=Path, default=Path("outputs/compare"), help="a folder")
    return parser


if __name__ == "__main__":
    main()
