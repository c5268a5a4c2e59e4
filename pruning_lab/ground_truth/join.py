"""``python -m pruning_lab.ground_truth.join``: combine the results of several networks."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from pruning_lab.compare import markdown
from pruning_lab.errors import UserError
from pruning_lab.ground_truth.figures import harm_by_layer, quality_and_cost, write_files
from pruning_lab.ground_truth.tables import VERSUS, over_networks, readable
from pruning_lab.tasks.task import measure_from

ABOUT = (
    "{networks} networks ({folders}). Each value is a mean over networks of the network's mean "
    "over its layers; 95 % intervals by Student's t over the networks. Quantile: the share of "
    "random orders of the same layer that do less harm, 0.5 for a random order. {versus} In the "
    "row of the random orders, the range of 95 % of them, each averaged over the networks."
)


def join(folders: Sequence[Path], output: Path) -> pd.DataFrame:
    """Combine the results of ``pruning_lab.ground_truth`` in ``folders``; return their table.

    Writes to ``output``: ``networks.md``, ``networks.csv``, ``quality_and_cost.png`` and, if all
    networks have the same layers, ``harm_by_layer.png`` with means over the networks. Raises
    UserError for fewer than two distinct folders, missing results, differing criteria or measures.
    """
    if len({folder.resolve() for folder in folders}) < max(2, len(folders)):
        given = ", ".join(map(str, folders))
        raise UserError(f"folders={given} are not possible; give two or more, each once.")
    networks, tables = (_read(folders, name) for name in ("layers.csv", "truth.csv"))
    criteria = [set(layers["criterion"]) for layers in networks]
    for folder, judged in zip(folders, criteria, strict=True):
        if different := judged ^ criteria[0]:
            raise UserError(
                f"{folder} and {folders[0]} differ in {', '.join(sorted(different))}: judge "
                "all networks by the same truth.criteria."
            )
    labels = {measure_from(table.iloc[0].to_dict()).label for table in tables}
    if len(labels) > 1:
        several = ", ".join(sorted(labels))
        raise UserError(f"The networks are of several measures ({several}); join those of one.")
    (measure,) = labels
    table = over_networks(networks, tables)
    figures = {"quality_and_cost": quality_and_cost(table, measure)}
    if len({tuple(layers["layer"].unique()) for layers in networks}) == 1:
        groups = pd.concat(networks).groupby(
            ["criterion", "order", "layer"], dropna=False, sort=False
        )
        means = groups[["quantile", "points", "points_vs_random"]].mean().reset_index()
        figures["harm_by_layer"] = harm_by_layer(means, list(table["criterion"]), measure)
    names = ", ".join(folder.name for folder in folders)
    versus = VERSUS.format(measure=measure)
    about = ABOUT.format(networks=len(folders), folders=names, versus=versus)
    texts = {
        "networks.md": f"{about}\n\n{markdown(readable(table))}",
        "networks.csv": table.to_csv(index=False, float_format="%.6g"),
    }
    write_files(output, figures, texts)
    return table


def _read(folders: Sequence[Path], name: str) -> list[pd.DataFrame]:
    """Read the table of this name in every folder."""
    for folder in folders:
        if not (folder / name).is_file():
            raise UserError(
                f"{folder} has no {name}; give output folders of pruning_lab.ground_truth."
            )
    return [pd.read_csv(folder / name) for folder in folders]


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m pruning_lab.ground_truth.join", description=__doc__
    )
    parser.add_argument("folders", nargs="+", type=Path, help="results of one network each")
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/truth"), help="folder to write to"
    )
    options = parser.parse_args()
    try:
        table = join(options.folders, options.output)
    except UserError as error:
        sys.exit(f"{parser.prog}: {error}")
    print(markdown(readable(table)))
    print(f"Files: {options.output}")


if __name__ == "__main__":
    main()
