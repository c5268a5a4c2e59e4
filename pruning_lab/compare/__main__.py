"""``python -m pruning_lab.compare``: the runs of an MLflow experiment as one figure and table."""

import argparse
from pathlib import Path

from pruning_lab.compare import accuracy_curves, accuracy_table, markdown
from pruning_lab.errors import UserError
from pruning_lab.tracking import read_runs


def main() -> None:
    """Write accuracy_vs_flops.png and accuracy_vs_flops.md for all finished runs."""
    parser = argparse.ArgumentParser(prog="python -m pruning_lab.compare", description=__doc__)
    parser.add_argument("--uri", default="sqlite:///mlflow.db", help="where the runs are recorded")
    parser.add_argument("--experiment", default="pruning_lab", help="their MLflow experiment")
    parser.add_argument("--output", type=Path, default=Path("outputs/compare"), help="a folder")
    given = parser.parse_args()
    try:
        runs = read_runs(given.uri, given.experiment)
        figure, table = accuracy_curves(runs), markdown(accuracy_table(runs))
    except UserError as error:
        parser.exit(1, f"{error}\n")
    given.output.mkdir(parents=True, exist_ok=True)
    figure.savefig(given.output / "accuracy_vs_flops.png", dpi=150)
    (given.output / "accuracy_vs_flops.md").write_text(table)
    print(f"{table}\nFigure and table: {given.output}")


if __name__ == "__main__":
    main()
