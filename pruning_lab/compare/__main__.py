"""``python -m pruning_lab.compare``: the runs of an MLflow experiment as figures and tables."""

import argparse
from pathlib import Path

import pandas as pd

from pruning_lab.compare import accuracy_curves, accuracy_table, comparable, markdown
from pruning_lab.errors import UserError
from pruning_lab.tracking import read_runs


def main() -> None:
    """Write accuracy_vs_flops.png and .md for all finished runs.

    Runs that differ in more than criterion and seed get a folder of their own each.
    """
    parser = argparse.ArgumentParser(prog="python -m pruning_lab.compare", description=__doc__)
    parser.add_argument("--uri", default="sqlite:///mlflow.db", help="where the runs are recorded")
    parser.add_argument("--experiment", default="pruning_lab", help="their MLflow experiment")
    parser.add_argument("--output", type=Path, default=Path("outputs/compare"), help="a folder")
    given = parser.parse_args()
    try:
        groups = comparable(read_runs(given.uri, given.experiment))
    except UserError as error:
        parser.exit(1, f"{error}\n")
    if not groups:
        parser.exit(1, f"No run of the experiment '{given.experiment}' is finished.\n")
    for name, runs in groups.items():
        write(runs, given.output if len(groups) == 1 else given.output / name)


def write(runs: pd.DataFrame, folder: Path) -> None:
    """One figure and one table for runs that differ in criterion and seed only."""
    figure, table = accuracy_curves(runs), markdown(accuracy_table(runs))
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "accuracy_vs_flops.png", dpi=150)
    (folder / "accuracy_vs_flops.md").write_text(table)
    print(f"{table}\nFigure and table: {folder}\n")


if __name__ == "__main__":
    main()
