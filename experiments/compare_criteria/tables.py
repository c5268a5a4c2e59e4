"""The tables of the page, from those that analyse.py has written.

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
    """Return a table as it was written."""
    return pd.read_csv(RESULTS / f"{name}.csv")


def label(criterion: str) -> str:
    """Return a criterion's name in words; for Shapley values with their pictures and reduction."""
    name, *rest = criterion.split(" ")
    if name != "shapley":
        return style_of(criterion).label
    reduction, pictures = rest if len(rest) == 2 else (rest[0], "")
    return f"Shapley {pictures}, {REDUCED[reduction]}".replace(" ,", ",")


def contrasts(block: str = "convnet", primary: bool = True) -> str:
    """Return each contrast's mean with its interval and its tests, in points."""
    found = read("contrasts").query("block == @block and (number > 0) == @primary")
    rows = [
        {
            "contrast": CRITERION.sub(lambda match: label(match[0]), str(row.contrast)),
            "repair": row.repair,
            "points": interval(row),
            "p, Holm" if primary else "p": _p(row.p_holm if primary else max(row.p, row.p_flips)),
            "equivalence p": _p(row.p_equivalent),
        }
        for row in found.itertuples()
    ]
    table = pd.DataFrame(rows, index=pd.Index(found["number"], name=""))
    return markdown(table if primary else table.set_index("contrast"))


def interval(row: Any) -> str:
    """Return a contrast's mean and its interval."""
    return f"{row.mean:+.1f} ({row.low:+.1f} to {row.high:+.1f})"


def _p(value: float) -> str:
    if math.isnan(value):
        return "not known"
    return f"{value:.3f}" if value >= 0.0005 else "< 0.001"


def accuracy(block: str, share: str = "all cuts", schedule: str = STEPWISE) -> str:
    """Return random removal's accuracy after each repair, and what the others have beyond it."""
    rows = read("summary").query("block == @block and schedule == @schedule and removed == @share")
    return _wide(rows, "repair", [each for each in REPAIRS if each in set(rows["repair"])])


def over_shares(block: str, repair: str) -> str:
    """Return the same with one repair, for each share removed."""
    rows = read("summary").query("block == @block and schedule == @STEPWISE and repair == @repair")
    return _wide(rows, "removed", list(rows["removed"].unique()))


def layerwise(block: str) -> str:
    """Return the same at the end, layer after layer."""
    return accuracy(block, "the end", LAYERWISE)


def _wide(rows: pd.DataFrame, column: str, order: list[str]) -> str:
    cells = {}
    for each in order:
        own = rows[rows[column] == each]
        cells[each] = {
            label(str(row.criterion)): f"{row.accuracy:.1f} ± {row.half:.1f}"
            if row.criterion == "random"
            else f"{row.beyond:+.1f} ± {row.beyond_half:.1f}"
            for row in own.itertuples()
        }
    return markdown(pd.DataFrame(cells).fillna("").rename_axis("criterion"))


def regret(block: str, share: str = "all cuts") -> str:
    """Return P(best) / regret for each criterion and repair, whatever scoring takes."""
    rows = read("regret").query("block == @block and removed == @share and seconds == inf")
    cells = {
        repair: {
            label(str(row.criterion)): f"{100 * row.p_best:.0f} % / {row.regret:.1f}"
            for row in own.itertuples()
        }
        for repair, own in rows.groupby("repair", sort=False)
    }
    return markdown(pd.DataFrame(cells).fillna("").rename_axis("criterion"))


def best_within(block: str) -> str:
    """Return the best criterion by repair and seconds of scoring; P(best), cost of the limit."""
    rows = read("regret").query("block == @block and removed == 'all cuts' and seconds < inf")
    cells = {
        f"{seconds:g} s": {
            row.repair: f"{_winner(row)}, {row.cost_of_budget:.1f}"
            for row in own.query("regret == 0").itertuples()
        }
        for seconds, own in rows.groupby("seconds")
    }
    return markdown(pd.DataFrame(cells).rename_axis("repair"))


def best_at(block: str) -> str:
    """Return the best criterion by repair and share removed, and P(best)."""
    rows = read("regret").query("block == @block and seconds == inf and regret == 0")
    cells = {
        share: {row.repair: _winner(row) for row in own.itertuples()}
        for share, own in rows.groupby("removed", sort=False)
    }
    return markdown(pd.DataFrame(cells).rename_axis("repair"))


def _winner(row: Any) -> str:
    return f"{label(row.criterion)} ({100 * row.p_best:.0f} %)"


def elsewhere(share: str = "all cuts") -> str:
    """Return, for each repair and block, the best criterion of the others, and its regret here."""
    rows = read("elsewhere").query("removed == @share")
    cells = {
        f"best elsewhere, regret on {pair}": {
            str(row.repair): f"{label(str(row.chosen))}: {row.regret:.1f}"
            for row in own.itertuples()
        }
        for pair, own in rows.groupby("pair", sort=False)
    }
    return markdown(pd.DataFrame(cells).rename_axis("repair"))


def classes(block: str) -> str:
    """Return the correlations of a class's loss and the accuracy it loses."""
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
    """Return the paper's Shapley values minus each other criterion, by schedule and repair."""
    rows = read("claim")
    cells = {}
    for (schedule, repair), own in rows.groupby(["schedule", "repair"], sort=False):
        way = "layer by layer, " if schedule == LAYERWISE else ""
        cells[f"{way}{repair}"] = {
            f"Shapley - {label(row.criterion)}": interval(row) for row in own.itertuples()
        }
    return markdown(pd.DataFrame(cells).rename_axis("points"))


def gains(block: str) -> str:
    """Return what fine-tuning adds after the first and the last cut, on many and few pictures."""
    rows = read("gains").query("block == @block")
    cells = {
        f"{share}, {repair}": {label(str(row.criterion)): interval(row) for row in own.itertuples()}
        for (share, repair), own in rows.groupby(["removed", "repair"], sort=False)
        if share in ("first cut", "last cut") and repair in (LONG, FEW)
    }
    return markdown(pd.DataFrame(cells).rename_axis("criterion"))


def draws(block: str) -> str:
    """Return how far two draws of a criterion lie apart on the same network, by repair."""
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
    """Return accuracies without fine-tuning, and what new biases of the output layer add."""
    before = refitted_by_network("test_accuracy_after")
    cells = {
        "as it is": {label(name): f"{before[name].mean():.1f}" for name in before},
        "answers off balance": {
            label(name): f"{own.mean():.0f} %"
            for name, own in refitted_by_network("imbalance").items()
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
    """Return a column of biases.csv, mean over the cuts in per cent: (networks, criteria)."""
    rows = pd.read_csv(BIASES).query("step > 0")
    names = rows["metric"].unique()
    return 100 * rows.pivot_table(column, "network", "metric", sort=False)[names]


def readme() -> str:
    """Return the table of the README: four repairs, Shapley values with the most pictures."""
    rows = read("summary").query("block == 'convnet' and removed == 'all cuts'")
    rows = rows[rows["criterion"].isin(rows.query("repair == @LONG")["criterion"])]
    return _wide(rows, "repair", ["stale", NONE, LONG, FEW])


def page() -> list[str]:
    """Return all tables of the page."""
    first, *seconds = read("summary")["block"].unique()
    found = [contrasts(first), contrasts(first, primary=False), accuracy(first)]
    found += [over_shares(first, repair) for repair in (NONE, LONG, FEW)]
    found += [gains(first), regret(first), best_at(first), best_within(first)]
    found += [layerwise(first), classes(first), refitted(), draws(first)]
    for block in seconds:
        found += [contrasts(block), accuracy(block), over_shares(block, LONG)]
    return [*found, elsewhere()]


def main() -> None:
    """Print them."""
    print(*page(), sep="\n")


if __name__ == "__main__":
    main()
