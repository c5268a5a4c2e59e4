"""Print what the pilots say: the recipe of fine-tuning, and the reduction of each criterion.

python -m experiments.pilots.choose
"""

from pathlib import Path

import pandas as pd

from pruning_lab.compare import markdown
from pruning_lab.compare.statistics import half_width

FOLDER = Path(__file__).parent
NETWORK = ["model", "dataset", "seed"]


def recipes(rows: pd.DataFrame) -> pd.DataFrame:
    """Points of validation accuracy that each recipe brings, and beyond the old default.

    A network's value is its mean over criteria and targets; ``half`` is half the 95 % interval of
    what a recipe brings beyond 40 steps at a constant rate of 0.01, paired within the networks.
    ``worst`` is the smallest gain of any pruned network: below 0 the recipe harmed it.
    """
    recipe = ["lr_schedule", "lr", "steps"]
    rows = rows.assign(gain=100 * (rows["accuracy"] - rows["accuracy_before"]))
    networks = rows.groupby([*NETWORK, *recipe], sort=False)["gain"].mean().unstack(recipe)
    beyond = networks.sub(networks["constant", 0.01, 40], axis=0)
    cases = rows.groupby(recipe, sort=False)
    found = {
        "gain": networks.mean(), "beyond": beyond.mean(), "half": beyond.apply(half_width),
        "loss": cases["loss"].mean(), "worst": cases["gain"].min(),
    }  # fmt: skip
    return pd.DataFrame(found).reset_index()


def reductions(rows: pd.DataFrame) -> pd.DataFrame:
    """Validation accuracy by criterion and reduction, and its distance from that of the mean.

    Means over networks of the means over targets; ``half`` is half the 95 % interval of the
    distance, paired within the networks. Random removal has no reduction: its draws are averaged.
    """
    rows = rows.assign(accuracy=100 * rows["accuracy"])
    rows.loc[rows["criterion"] == "random", "reduction"] = "mean"
    table = rows.groupby([*NETWORK, "criterion", "reduction"], sort=False)["accuracy"].mean()
    found = []
    for criterion, own in table.groupby("criterion", sort=False):
        wide = own.unstack("reduction")
        for name in wide:
            gaps = wide[name] - wide["mean"]
            found.append((criterion, name, wide[name].mean(), gaps.mean(), half_width(gaps)))
    return pd.DataFrame(
        found, columns=["criterion", "reduction", "accuracy", "beyond the mean", "half"]
    )


def main() -> None:
    """Print both tables."""
    digits = {"loss": 3, "worst": 1, "accuracy": 1, "beyond the mean": 1}
    for name, table in (("recovery", recipes), ("reductions", reductions)):
        found = table(pd.read_csv(FOLDER / f"{name}.csv"))
        print(markdown(found.set_index(found.columns[0]).round(2).round(digits)))


if __name__ == "__main__":
    main()
