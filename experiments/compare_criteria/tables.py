"""Print the tables of the results page from those that analyse.py has written.

python -m experiments.compare_criteria.tables     # prints them
"""

import math
import re
from typing import Any

import pandas as pd

from experiments.compare_criteria.analyse import REPAIRS, RESULTS
from experiments.compare_criteria.biases import RESULT as BIASES
from experiments.compare_criteria.records import FEW, LAYERWISE, LONG, NONE, OTHER, STEPWISE
from pruning_lab.compare import markdown, style_of
from pruning_lab.compare.report import mean_and_half_width

CRITERION = re.compile(r"shapley \S+ \d+|taylor_signed|taylor|weight_norm|random")
REDUCED = {"mean": "mean", "mean_abs": "mean of absolute values", "mean_plus_2_std": "mean + 2 std"}


def read(name: str) -> pd.DataFrame:
    """Read a table of results/."""
    return pd.read_csv(RESULTS / f"{name}.csv")


def label(criterion: str) -> str:
    """Return a criterion's display name; for Shapley values with pictures and reduction."""
    name, *rest = criterion.split(" ")
    if name != "shapley":
        return style_of(criterion).label
    reduction, pictures = rest if len(rest) == 2 else (rest[0], "")
    return f"Shapley {pictures}, {REDUCED[reduction]}".replace(" ,", ",")


def contrasts(block: str = "convnet", primary: bool = True) -> str:
    """Return each contrast's mean with its interval and its tests, in points."""
    results = read("contrasts").query("block == @block and (number > 0) == @primary")
    rows = [
        {
            "contrast": CRITERION.sub(lambda match: label(match[0]), str(row.contrast)),
            "repair": row.repair,
            "points": interval(row),
            "p, Holm" if primary else "p": _p(row.p_holm if primary else max(row.p, row.p_flips)),
            "equivalence p": _p(row.p_equivalent),
        }
        for row in results.itertuples()
    ]
    table = pd.DataFrame(rows, index=pd.Index(results["number"], name=""))
    return markdown(table if primary else table.set_index("contrast"))


def interval(row: Any) -> str:
    """Format the mean and the interval of a row."""
    return f"{row.mean:+.1f} ({row.low:+.1f} to {row.high:+.1f})"


def _p(value: float) -> str:
    if math.isnan(value):
        return "not known"
    return f"{value:.3f}" if value >= 0.0005 else "< 0.001"


def accuracy(block: str, share: str = "all cuts", schedule: str = STEPWISE) -> str:
    """Return, by repair, random removal's accuracy and the other criteria's difference from it."""
    rows = read("summary").query("block == @block and schedule == @schedule and removed == @share")
    return _wide(rows, "repair", [repair for repair in REPAIRS if repair in set(rows["repair"])])


def over_shares(block: str, repair: str) -> str:
    """Return ``accuracy`` after one repair, by share removed."""
    rows = read("summary").query("block == @block and schedule == @STEPWISE and repair == @repair")
    return _wide(rows, "removed", list(rows["removed"].unique()))


def layerwise(block: str) -> str:
    """Return ``accuracy`` at the end of pruning layer by layer."""
    return accuracy(block, "the end", LAYERWISE)


def _wide(rows: pd.DataFrame, column: str, order: list[str]) -> str:
    cells = {}
    for value in order:
        group = rows[rows[column] == value]
        cells[value] = {
            label(str(row.criterion)): f"{row.accuracy:.1f} ± {row.half:.1f}"
            if row.criterion == "random"
            else f"{row.beyond:+.1f} ± {row.beyond_half:.1f}"
            for row in group.itertuples()
        }
    return markdown(pd.DataFrame(cells).fillna("").rename_axis("criterion"))


def regret(block: str, share: str = "all cuts") -> str:
    """Return P(best) / regret by criterion and repair, without a limit on scoring seconds."""
    rows = read("regret").query("block == @block and removed == @share and seconds == inf")
    cells = {
        repair: {
            label(str(row.criterion)): f"{100 * row.p_best:.0f} % / {row.regret:.1f}"
            for row in group.itertuples()
        }
        for repair, group in rows.groupby("repair", sort=False)
    }
    return markdown(pd.DataFrame(cells).fillna("").rename_axis("criterion"))


def best_within(block: str) -> str:
    """Return the best criterion by repair and limit on scoring seconds; P(best), limit's cost."""
    rows = read("regret").query("block == @block and removed == 'all cuts' and seconds < inf")
    cells = {
        f"{seconds:g} s": {
            row.repair: f"{_winner(row)}, {row.cost_of_budget:.1f}"
            for row in group.query("regret == 0").itertuples()
        }
        for seconds, group in rows.groupby("seconds")
    }
    return markdown(pd.DataFrame(cells).rename_axis("repair"))


def best_at(block: str) -> str:
    """Return the best criterion by repair and share removed, and P(best)."""
    rows = read("regret").query("block == @block and seconds == inf and regret == 0")
    cells = {
        share: {row.repair: _winner(row) for row in group.itertuples()}
        for share, group in rows.groupby("removed", sort=False)
    }
    return markdown(pd.DataFrame(cells).rename_axis("repair"))


def _winner(row: Any) -> str:
    return f"{label(row.criterion)} ({100 * row.p_best:.0f} %)"


def elsewhere(share: str = "all cuts") -> str:
    """Return, by repair and block, the best criterion on other blocks and its regret here."""
    rows = read("elsewhere").query("removed == @share")
    cells = {
        f"best elsewhere, regret on {pair}": {
            str(row.repair): f"{label(str(row.chosen))}: {row.regret:.1f}"
            for row in group.itertuples()
        }
        for pair, group in rows.groupby("pair", sort=False)
    }
    return markdown(pd.DataFrame(cells).rename_axis("repair"))


def classes(block: str) -> str:
    """Return the correlations of classes' losses with the accuracy that they lose."""
    rows = read("classes").query("block == @block")
    cells = {
        label(str(row.criterion)): {
            "Spearman's correlation": f"{row.spearman:.2f} ± {row.half:.2f}",
            "minus random's": f"{row.beyond:+.2f} ± {row.beyond_half:.2f}",
        }
        for row in rows.itertuples()
    }
    return markdown(pd.DataFrame(cells).T.rename_axis("criterion"))


def claim() -> str:
    """Return the paper's Shapley values minus every other criterion, by schedule and repair."""
    rows = read("claim")
    cells = {}
    for (schedule, repair), group in rows.groupby(["schedule", "repair"], sort=False):
        way = "layer by layer, " if schedule == LAYERWISE else ""
        cells[f"{way}{repair}"] = {
            f"Shapley - {label(row.criterion)}": interval(row) for row in group.itertuples()
        }
    return markdown(pd.DataFrame(cells).rename_axis("points"))


def gains(block: str) -> str:
    """Return the gain of fine-tuning after the first and last cut, on many and few pictures."""
    rows = read("gains").query("block == @block")
    cells = {
        f"{share}, {repair}": {
            label(str(row.criterion)): interval(row) for row in group.itertuples()
        }
        for (share, repair), group in rows.groupby(["removed", "repair"], sort=False)
        if share in ("first cut", "last cut") and repair in (LONG, FEW)
    }
    return markdown(pd.DataFrame(cells).rename_axis("criterion"))


def draws(block: str) -> str:
    """Return the difference of two draws of a criterion on the same network, by repair."""
    rows = read("draws").query("block == @block")
    cells = {
        repair: {
            label(str(row.criterion).removesuffix(OTHER)): f"{row.rms:.1f}"
            for row in rows[rows["repair"] == repair].itertuples()
        }
        for repair in REPAIRS
    }
    return markdown(pd.DataFrame(cells).fillna("").rename_axis("criterion"))


def refitted() -> str:
    """Return accuracies without fine-tuning, and the gain of new biases of the output layer."""
    before = refitted_by_network("test_accuracy_after")
    cells = {
        "as it is": {label(name): f"{before[name].mean():.1f}" for name in before},
        "answers off balance": {
            label(name): f"{values.mean():.0f} %"
            for name, values in refitted_by_network("imbalance").items()
        },
    }
    for column in ("restored", "refitted"):
        after = refitted_by_network(column)
        gain, beyond = after - before, after.sub(after["random"], axis=0)
        for words, values in (("", gain), (", beyond random", beyond)):
            cells[f"{column}{words}"] = {
                label(name): mean_and_half_width(values[name]) for name in before
            }
    return markdown(pd.DataFrame(cells).rename_axis("criterion"))


def refitted_by_network(column: str) -> pd.DataFrame:
    """Return a column of biases.csv in per cent, mean over the cuts: (networks, criteria)."""
    rows = pd.read_csv(BIASES).query("step > 0")
    names = rows["metric"].unique()
    return 100 * rows.pivot_table(column, "network", "metric", sort=False)[names]


def results() -> str:
    """Return the README's table: four repairs, Shapley values with the most pictures."""
    rows = read("summary").query("block == 'convnet' and removed == 'all cuts'")
    rows = rows[rows["criterion"].isin(rows.query("repair == @LONG")["criterion"])]
    return _wide(rows, "repair", ["stale", NONE, LONG, FEW])


def page() -> list[str]:
    """Return all tables of the page."""
    first, *seconds = read("summary")["block"].unique()
    tables = [contrasts(first), contrasts(first, primary=False), accuracy(first)]
    tables += [over_shares(first, repair) for repair in (NONE, LONG, FEW)]
    tables += [gains(first), regret(first), best_at(first), best_within(first)]
    tables += [layerwise(first), classes(first), refitted(), draws(first)]
    for block in seconds:
        tables += [contrasts(block), accuracy(block), over_shares(block, LONG)]
    return [*tables, elsewhere()]


def main() -> None:
    """Print all tables."""
    print(*page(), sep="\n")


if __name__ == "__main__":
    main()
