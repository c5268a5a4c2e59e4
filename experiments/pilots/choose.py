"""Print the pilots' results: recipes of fine-tuning, and reductions of each criterion.

python -m experiments.pilots.choose
"""

from pathlib import Path

import pandas as pd

from pruning_lab.compare import markdown
from pruning_lab.compare.statistics import half_width

FOLDER = Path(__file__).parent
NETWORK = ["model", "dataset", "seed"]


def recipes(rows: pd.DataFrame) -> pd.DataFrame:
    """Return each recipe's gain of validation accuracy in points, also beyond the old default.

    A network's value is its mean over criteria and targets; ``half`` is half the 95 % interval of
    the gain beyond 40 steps at a constant rate of 0.01, paired within the networks.
    ``worst`` is the smallest gain of any pruned network: below 0 the recipe harmed it.
    """
    recipe = ["lr_schedule", "lr", "steps"]
    rows = rows.assign(gain=100 * (rows["accuracy"] - rows["accuracy_before"]))
    networks = rows.groupby([*NETWORK, *recipe], sort=False)["gain"].mean().unstack(recipe)
    beyond = networks.sub(networks["constant", 0.01, 40], axis=0)
    cases = rows.groupby(recipe, sort=False)
    columns = {
        "gain": networks.mean(), "beyond": beyond.mean(), "half": beyond.apply(half_width),
        "worst": cases["gain"].min().round(2),
    }  # fmt: skip
    return pd.DataFrame(columns).reset_index().astype({"steps": int})


def reductions(rows: pd.DataFrame) -> pd.DataFrame:
    """Return validation accuracy by criterion and reduction, also against the mean and random.

    Means over networks of the means over targets; after each difference half its 95 % interval,
    paired within the networks. Random removal has no reduction: its draws are averaged.
    """
    rows = rows.assign(accuracy=100 * rows["accuracy"])
    rows.loc[rows["criterion"] == "random", "reduction"] = "mean"
    cases = [*NETWORK, "criterion", "reduction"]
    table = rows.groupby(cases, sort=False)["accuracy"].mean().unstack(["criterion", "reduction"])
    lines = []
    for criterion, reduction in table:
        accuracies = table[criterion, reduction]
        row = {"criterion": criterion, "reduction": reduction, "accuracy": accuracies.mean()}
        for name, reference in (("mean", (criterion, "mean")), ("random", ("random", "mean"))):
            gaps = accuracies - table[reference]
            row |= {f"beyond {name}": gaps.mean(), f"half {name}": half_width(gaps)}
        lines.append(row)
    return pd.DataFrame(lines)


def readable(table: pd.DataFrame) -> str:
    """Format either table, with a difference and half its interval in one cell."""
    columns: dict[str, list[str]] = {}
    for name in table:
        if not str(name).startswith("half"):
            columns[str(name)] = [_cell(value) for value in table[name]]
            last = str(name)
        else:
            cells = zip(table[last], table[name], strict=True)
            columns[last] = [f"{value:.1f} ± {half:.1f}" if half else "" for value, half in cells]
    shown = pd.DataFrame(columns)
    return markdown(shown.set_index(shown.columns[0]))


def _cell(value: object) -> str:
    """Format measurements with one digit, and settings as they are."""
    if isinstance(value, float):
        return f"{value:.1f}" if abs(value) >= 0.1 else f"{value:g}"
    return str(value)


def main() -> None:
    """Print both tables."""
    for name, table in (("recovery", recipes), ("reductions", reductions)):
        print(readable(table(pd.read_csv(FOLDER / f"{name}.csv"))))


if __name__ == "__main__":
    main()
