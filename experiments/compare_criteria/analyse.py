"""The contrasts that were planned, the tables and the figure of what run.py has written.

python -m experiments.compare_criteria.analyse     # writes results/ anew
"""

from collections.abc import Mapping, Sequence
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.compare_criteria.contrasts import MARGIN, contrasts, gap
from experiments.compare_criteria.records import (
    CUTS,
    FEW,
    LAYERWISE,
    LONG,
    NONE,
    NONE_OF_FEW,
    OTHER,
    STEPWISE,
    Block,
)
from pruning_lab.compare import accuracy_curves
from pruning_lab.compare.agreement import spearman
from pruning_lab.compare.crossed import crossed_mean
from pruning_lab.compare.exact import sign_flip_p
from pruning_lab.compare.regret import regret_elsewhere, regrets
from pruning_lab.compare.statistics import half_width

RESULTS = Path(__file__).with_name("results")
BLOCKS = ("convnet", "resnet20", "vgg11")
REPAIRS = ("stale", NONE, "40 steps", LONG, NONE_OF_FEW, FEW)
SHARES: dict[str, int | str] = {"all cuts": CUTS, "first cut": 1, "third cut": 3, "last cut": 6}
"""The mean over all cuts, and single ones: about 40, 78 and 95 % of the FLOPs are removed then."""

ALSO = (
    "test_loss_after", "test_worst_class_accuracy_after", "test_calibration_error_after", "noise",
    "blur", "translation",
)  # fmt: skip
"""Secondary measures."""

BEST = "mean_plus_2_std"
"""The reduction of Shapley values that the paper found best."""

INTERVAL = ("mean", "low", "high")

BUDGETS = (0.1, 1.0, 10.0, np.inf)
"""Seconds of scoring that a criterion may take, before each cut, on the whole network."""

DRAWN = ("random", "taylor", "taylor_signed", "weight_norm", "owen_gradient", "banzhaf",
         "shapley mean", "shapley mean_plus_2_std")  # fmt: skip
"""The criteria of the figure; Shapley values with the most pictures."""


def draws(block: Block) -> pd.DataFrame:
    """Return the differences between two draws of a criterion, in points, by repair."""
    rows = block.rows[block.rows["metric"].str.endswith(OTHER)]
    found = []
    for (metric, repair), own in rows.groupby(["metric", "repair"], sort=False):
        some = Block(block.name, block.folder, tuple(sorted(own["network"].unique())))
        gaps = gap(some, str(metric), str(metric).removesuffix(OTHER), str(repair)).mean(1)
        found.append((block.name, metric, repair, len(gaps), float(np.sqrt(np.mean(gaps**2)))))
    return pd.DataFrame(found, columns=["block", "criterion", "repair", "networks", "rms"])


def secondary(block: Block) -> pd.DataFrame:
    """Return means of all else that was measured, and half their intervals, over networks."""
    rows = block.rows[block.rows["step"].isin(SHARES.values())]
    groups = rows.groupby(["schedule", "repair", "metric", "step"], sort=False)[list(ALSO)]
    table = groups.mean().join(groups.agg(half_width).add_suffix(" ±")).reset_index()
    return table.assign(block=block.name)


def repairs(blocks: Sequence[Block]) -> list[str]:
    """Those that all blocks have."""
    return [repair for repair in REPAIRS if all(block.measured(repair) for block in blocks)]


def summary(block: Block) -> pd.DataFrame:
    """Every criterion's accuracy by repair and share removed, and layer after layer.

    ``half`` is half its interval; ``beyond`` what it has more than random removal, paired.
    """
    rows = []
    for schedule, repair in product((STEPWISE, LAYERWISE), REPAIRS):
        for metric in block.measured(repair, schedule):
            shares = SHARES if schedule == STEPWISE else {"the end": _last(block, schedule)}
            for share, at in shares.items():
                own, random = (
                    block.accuracy(each, repair, at, schedule) for each in (metric, "random")
                )
                means = [crossed_mean(own), crossed_mean(own - random)]
                halves = [(each.high - each.low) / 2 for each in means]
                numbers = [means[0].mean, halves[0], means[1].mean, halves[1]]
                rows.append((block.name, schedule, repair, metric, share, *numbers))
    names = ["block", "schedule", "repair", "criterion", "removed"]
    return pd.DataFrame(rows, columns=[*names, "accuracy", "half", "beyond", "beyond_half"])


def pairs(block: Block) -> pd.DataFrame:
    """Return the difference of each two criteria after each repair, mean over the cuts.

    ``p_equivalent`` is that of less than half a point between the two.
    """
    rows = []
    for repair in repairs([block]):
        for one, other in combinations(block.measured(LONG), 2):
            found = crossed_mean(gap(block, one, other, repair))
            numbers = found.mean, found.low, found.high, found.p_equivalent(MARGIN)
            rows.append((block.name, repair, one, other, *numbers))
    names = ["block", "repair", "criterion", "other", *INTERVAL, "p_equivalent"]
    return pd.DataFrame(rows, columns=names)


def gains(block: Block) -> pd.DataFrame:
    """Return what fine-tuning adds to a network that was recalibrated from the same pictures."""
    rows, without = [], (("40 steps", NONE), (LONG, NONE), (FEW, NONE_OF_FEW))
    for (repair, before), (share, at) in product(without, SHARES.items()):
        for name in block.measured(repair):
            own = block.accuracy(name, repair, at) - block.accuracy(name, before, at)
            found = crossed_mean(own)
            rows.append((block.name, repair, share, name, found.mean, found.low, found.high))
    return pd.DataFrame(rows, columns=["block", "repair", "removed", "criterion", *INTERVAL])


def claim(block: Block) -> pd.DataFrame:
    """The paper's claim: Shapley values, mean plus two standard deviations, minus the others.

    Where nothing is fine-tuned, or on 100 pictures: the mean of all cuts, and the end of layer
    after layer. Intervals as those of the contrasts.
    """
    (paper,) = (name for name in block.measured(FEW) if name.startswith(f"shapley {BEST}"))
    others = [name for name in block.measured(FEW) if not name.startswith("shapley")]
    rows = []
    for schedule, at in ((STEPWISE, CUTS), (LAYERWISE, _last(block, LAYERWISE))):
        for repair, other in product(("stale", NONE_OF_FEW, FEW), others):
            own, theirs = (block.accuracy(name, repair, at, schedule) for name in (paper, other))
            found = crossed_mean(own - theirs)
            p = max(found.p, sign_flip_p((own - theirs).mean(1)))
            head = (block.name, schedule, repair, other)
            rows.append((*head, found.mean, found.low, found.high, p))
    names = ["block", "schedule", "repair", "criterion", *INTERVAL, "p"]
    return pd.DataFrame(rows, columns=names)


def _last(block: Block, schedule: str) -> int:
    return int(block.rows.loc[block.rows["schedule"] == schedule, "step"].max())


def by_network(block: Block, repair: str, at: int | str) -> pd.DataFrame:
    """Accuracies (networks, criteria)."""
    names = block.measured(repair)
    values = [block.accuracy(name, repair, at).mean(1) for name in names]
    return pd.DataFrame(np.transpose(values), block.networks, names)


def seconds(block: Block) -> pd.Series:
    """Return the seconds that each criterion takes to score the unpruned network: medians."""
    first = block.rows[(block.rows["step"] == 1) & (block.rows["schedule"] == STEPWISE)]
    return first.groupby("metric")["scoring_seconds"].median()


def regret(block: Block) -> pd.DataFrame:
    """P(best) and regret by repair, share removed and seconds that scoring may take.

    Over networks alone: the test pictures are taken as they are.
    """
    took, found = seconds(block), []
    for repair, (share, at), budget in product(repairs([block]), SHARES.items(), BUDGETS):
        table = by_network(block, repair, at)
        within = table[[name for name in table if took[name] <= budget]]
        if within.shape[1] < 2:
            continue
        rows = regrets(within).rename_axis("criterion").reset_index()
        cost_of_budget = table.mean().max() - within.mean().max()
        head = {"block": block.name, "repair": repair, "removed": share, "seconds": budget}
        found.append(rows.assign(**head, cost_of_budget=cost_of_budget))
    return pd.concat(found, ignore_index=True)


def classes(block: Block) -> pd.DataFrame:
    """Correlate the difficulty of a class with the accuracy that it loses.

    For each network, Spearman's correlation over the classes between the loss of the unpruned
    network on the scoring pictures and the accuracy lost after the third cut, without fine-tuning;
    ``beyond`` is that minus the same of random removal, paired. Means over the networks, and half
    their 95 % intervals, over networks alone. Below 0, easy classes lose most.
    """
    found, losses = {}, block.class_losses()
    for name in block.measured(NONE):
        lost = block.class_accuracy(name, NONE, 0) - block.class_accuracy(name, NONE, 3)
        found[name] = pd.Series([spearman(*pair) for pair in zip(losses, lost, strict=True)])
    rows = []
    for name, own in found.items():
        gaps = own - found["random"]
        rows.append((block.name, name, own.mean(), half_width(own), gaps.mean(), half_width(gaps)))
    names = ["block", "criterion", "spearman", "half", "beyond", "beyond_half"]
    return pd.DataFrame(rows, columns=names)


def elsewhere(blocks: Sequence[Block]) -> pd.DataFrame:
    """Return the regret of choosing, for each block, the criterion that is best on the others.

    Of the criteria with all repairs: Shapley values have a block's largest number of pictures.
    """
    found = []
    for repair, (share, at) in product(repairs(blocks), SHARES.items()):
        means = {}
        for block in blocks:
            own = by_network(block, repair, at)[block.measured(LONG)].mean()
            means[block.name] = own.rename(index=_without_number)
        table = pd.DataFrame(means).T
        rows = regret_elsewhere(table).reset_index()
        found.append(rows.assign(repair=repair, removed=share))
    return pd.concat(found, ignore_index=True)


def _without_number(name: str) -> str:
    head, _, tail = name.rpartition(" ")
    return head if tail.isdigit() else name


FIGURES = {
    "accuracy_vs_flops": {"stale": "stale", NONE: "untuned", LONG: "main"},
    "hundred_pictures": {NONE_OF_FEW: "untuned", FEW: "main"},
}
"""Repairs of each figure, by the names of tracks that ``accuracy_curves`` knows."""


def figure_rows(block: Block, tracks: Mapping[str, str]) -> pd.DataFrame:
    """Return a block's rows as ``accuracy_curves`` takes them; ``tracks`` is one of FIGURES."""
    most = {_without_number(name): name for name in block.measured(LONG)}
    shown = {most[name]: name.replace("_plus_2_", " + 2 ") for name in DRAWN}
    rows = block.rows
    rows = rows[(rows["schedule"] == STEPWISE) & rows["repair"].isin(tracks)]
    rows = rows[rows["metric"].isin(shown)]
    return pd.DataFrame(
        {
            "run_id": rows["metric"] + rows["network"].astype(str), "block": rows["network"],
            "metric": rows["metric"].map(shown), "track": rows["repair"].map(tracks),
            "step": rows["step"], "removed_flops": rows["removed_flops"],
            "test_accuracy_before": rows["test_accuracy_after"],
            "test_accuracy_after": rows["test_accuracy_after"],
            "model": rows["block"], "dataset": "Fashion-MNIST", "schedule": "geometric",
            "finetune": "sgd", "setting": "", "metric_settings": "{}",
        }
    )  # fmt: skip


def main() -> None:
    """Write the tables and the figures."""
    blocks = [Block(name) for name in BLOCKS if any((Block(name).folder / name).glob("*.csv"))]
    RESULTS.mkdir(exist_ok=True)
    tables = {
        of_block.__name__: pd.concat([of_block(block) for block in blocks], ignore_index=True)
        for of_block in (contrasts, draws, secondary, summary, classes, pairs, gains, regret)
    }
    tables |= {"claim": claim(blocks[0]), "elsewhere": elsewhere(blocks)}
    for name, table in tables.items():
        table.to_csv(RESULTS / f"{name}.csv", index=False, float_format="%.6g")
    for name, tracks in FIGURES.items():
        figure = accuracy_curves(figure_rows(blocks[0], tracks))
        figure.savefig(RESULTS / f"{name}.png", dpi=150, metadata={"Software": None})


if __name__ == "__main__":
    main()
