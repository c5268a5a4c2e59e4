"""Compute the planned contrasts, the tables and the figures from the records of run.py.

python -m experiments.compare_criteria.analyse     # overwrites results/
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
from experiments.compare_criteria.regret import regret_elsewhere, regrets
from experiments.crossed import crossed_mean
from pruning_lab.compare import quality_curves
from pruning_lab.compare.agreement import spearman
from pruning_lab.compare.statistics import half_width, sign_flip_p

RESULTS = Path(__file__).with_name("results")
BLOCKS = ("convnet", "resnet20", "vgg11")
REPAIRS = ("stale", NONE, "40 steps", LONG, NONE_OF_FEW, FEW)
SHARES: dict[str, int | str] = {"all cuts": CUTS, "first cut": 1, "third cut": 3, "last cut": 6}
"""Mean over all cuts, and single cuts, which have removed about 40, 78 and 95 % of the FLOPs."""

ALSO = (
    "test_loss_after", "test_worst_class_accuracy_after", "test_calibration_error_after", "noise",
    "blur", "translation",
)  # fmt: skip
"""Secondary measures."""

BEST = "mean_plus_2_std"
"""The paper's best reduction of Shapley values."""

INTERVAL = ("mean", "low", "high")

BUDGETS = (0.1, 1.0, 10.0, np.inf)
"""Limits on the seconds that a criterion takes to score the whole network before a cut."""

DRAWN = ("random", "taylor", "taylor_signed", "weight_norm", "owen_gradient", "banzhaf",
         "shapley mean", "shapley mean_plus_2_std")  # fmt: skip
"""Criteria in the figures; Shapley values with the most pictures."""


def draws(block: Block) -> pd.DataFrame:
    """Return the root mean squared difference of a criterion's two draws, in points, by repair."""
    rows = block.rows[block.rows["metric"].str.endswith(OTHER)]
    table = []
    for (metric, repair), group in rows.groupby(["metric", "repair"], sort=False):
        subset = Block(block.name, block.folder, tuple(sorted(group["network"].unique())))
        gaps = gap(subset, str(metric), str(metric).removesuffix(OTHER), str(repair)).mean(1)
        table.append((block.name, metric, repair, len(gaps), float(np.sqrt(np.mean(gaps**2)))))
    return pd.DataFrame(table, columns=["block", "criterion", "repair", "networks", "rms"])


def secondary(block: Block) -> pd.DataFrame:
    """Return means over networks of the secondary measures, and half their intervals."""
    rows = block.rows[block.rows["step"].isin(SHARES.values())]
    groups = rows.groupby(["schedule", "repair", "metric", "step"], sort=False)[list(ALSO)]
    table = groups.mean().join(groups.agg(half_width).add_suffix(" ±")).reset_index()
    return table.assign(block=block.name)


def repairs(blocks: Sequence[Block]) -> list[str]:
    """Return the repairs that all blocks have."""
    return [repair for repair in REPAIRS if all(block.measured(repair) for block in blocks)]


def summary(block: Block) -> pd.DataFrame:
    """Return the accuracy of every criterion by schedule, repair and share removed.

    ``half`` is half its interval; ``beyond`` its paired difference from random removal.
    """
    rows = []
    for schedule, repair in product((STEPWISE, LAYERWISE), REPAIRS):
        for metric in block.measured(repair, schedule):
            shares = SHARES if schedule == STEPWISE else {"the end": _last(block, schedule)}
            for share, at in shares.items():
                values, random = (
                    block.accuracy(name, repair, at, schedule) for name in (metric, "random")
                )
                means = [crossed_mean(values), crossed_mean(values - random)]
                halves = [(mean.high - mean.low) / 2 for mean in means]
                numbers = [means[0].mean, halves[0], means[1].mean, halves[1]]
                rows.append((block.name, schedule, repair, metric, share, *numbers))
    names = ["block", "schedule", "repair", "criterion", "removed"]
    return pd.DataFrame(rows, columns=[*names, "accuracy", "half", "beyond", "beyond_half"])


def pairs(block: Block) -> pd.DataFrame:
    """Return the difference of every two criteria after each repair, mean over the cuts.

    ``p_equivalent`` is the p value for a difference of less than half a point.
    """
    rows = []
    for repair in repairs([block]):
        for first, second in combinations(block.measured(LONG), 2):
            estimate = crossed_mean(gap(block, first, second, repair))
            numbers = estimate.mean, estimate.low, estimate.high, estimate.p_equivalent(MARGIN)
            rows.append((block.name, repair, first, second, *numbers))
    names = ["block", "repair", "criterion", "other", *INTERVAL, "p_equivalent"]
    return pd.DataFrame(rows, columns=names)


def gains(block: Block) -> pd.DataFrame:
    """Return the gain of fine-tuning over recalibration alone, from the same pictures."""
    rows, without = [], (("40 steps", NONE), (LONG, NONE), (FEW, NONE_OF_FEW))
    for (repair, before), (share, at) in product(without, SHARES.items()):
        for name in block.measured(repair):
            values = block.accuracy(name, repair, at) - block.accuracy(name, before, at)
            gain = crossed_mean(values)
            rows.append((block.name, repair, share, name, gain.mean, gain.low, gain.high))
    return pd.DataFrame(rows, columns=["block", "repair", "removed", "criterion", *INTERVAL])


def claim(block: Block) -> pd.DataFrame:
    """Test the paper's claim: Shapley values, mean plus two standard deviations, minus the others.

    Without fine-tuning, and with it on 100 pictures: the mean over all cuts, and the end of pruning
    layer by layer. Intervals are those of the contrasts.
    """
    (paper,) = (name for name in block.measured(FEW) if name.startswith(f"shapley {BEST}"))
    others = [name for name in block.measured(FEW) if not name.startswith("shapley")]
    rows = []
    for schedule, at in ((STEPWISE, CUTS), (LAYERWISE, _last(block, LAYERWISE))):
        for repair, other in product(("stale", NONE_OF_FEW, FEW), others):
            ours, theirs = (block.accuracy(name, repair, at, schedule) for name in (paper, other))
            estimate = crossed_mean(ours - theirs)
            p = max(estimate.p, sign_flip_p((ours - theirs).mean(1)))
            head = (block.name, schedule, repair, other)
            rows.append((*head, estimate.mean, estimate.low, estimate.high, p))
    names = ["block", "schedule", "repair", "criterion", *INTERVAL, "p"]
    return pd.DataFrame(rows, columns=names)


def _last(block: Block, schedule: str) -> int:
    return int(block.rows.loc[block.rows["schedule"] == schedule, "step"].max())


def by_network(block: Block, repair: str, at: int | str) -> pd.DataFrame:
    """Return accuracies (networks, criteria) in per cent."""
    names = block.measured(repair)
    values = [block.accuracy(name, repair, at).mean(1) for name in names]
    return pd.DataFrame(np.transpose(values), block.networks, names)


def seconds(block: Block) -> pd.Series:
    """Return each criterion's median seconds to score the unpruned network."""
    first = block.rows[(block.rows["step"] == 1) & (block.rows["schedule"] == STEPWISE)]
    return first.groupby("metric")["scoring_seconds"].median()


def regret(block: Block) -> pd.DataFrame:
    """Return P(best) and regret by repair, share removed and limit on the seconds of scoring.

    They generalise over networks only: the test pictures are fixed.
    """
    took, tables = seconds(block), []
    for repair, (share, at), budget in product(repairs([block]), SHARES.items(), BUDGETS):
        table = by_network(block, repair, at)
        within = table[[name for name in table if took[name] <= budget]]
        if within.shape[1] < 2:
            continue
        rows = regrets(within).rename_axis("criterion").reset_index()
        cost_of_budget = table.mean().max() - within.mean().max()
        head = {"block": block.name, "repair": repair, "removed": share, "seconds": budget}
        tables.append(rows.assign(**head, cost_of_budget=cost_of_budget))
    return pd.concat(tables, ignore_index=True)


def classes(block: Block) -> pd.DataFrame:
    """Correlate the difficulty of classes with the accuracy that they lose.

    For each network, Spearman's correlation over the classes between the loss of the unpruned
    network on the scoring pictures and the accuracy lost after the third cut, without fine-tuning;
    ``beyond`` is its paired difference from random removal. Means over the networks, and half their
    95 % intervals, over networks only. Below 0, easy classes lose most.
    """
    correlations, losses = {}, block.class_losses()
    for name in block.measured(NONE):
        lost = block.class_accuracy(name, NONE, 0) - block.class_accuracy(name, NONE, 3)
        correlations[name] = pd.Series([spearman(*pair) for pair in zip(losses, lost, strict=True)])
    rows = []
    for name, rho in correlations.items():
        gaps = rho - correlations["random"]
        rows.append((block.name, name, rho.mean(), half_width(rho), gaps.mean(), half_width(gaps)))
    names = ["block", "criterion", "spearman", "half", "beyond", "beyond_half"]
    return pd.DataFrame(rows, columns=names)


def elsewhere(blocks: Sequence[Block]) -> pd.DataFrame:
    """Return the regret of choosing, for each block, the criterion that is best on the others.

    Only criteria with all repairs; Shapley values use a block's largest number of pictures.
    """
    tables = []
    for repair, (share, at) in product(repairs(blocks), SHARES.items()):
        means = {}
        for block in blocks:
            accuracies = by_network(block, repair, at)[block.measured(LONG)].mean()
            means[block.name] = accuracies.rename(index=_without_number)
        table = pd.DataFrame(means).T
        rows = regret_elsewhere(table).reset_index()
        tables.append(rows.assign(repair=repair, removed=share))
    return pd.concat(tables, ignore_index=True)


def _without_number(name: str) -> str:
    head, _, tail = name.rpartition(" ")
    return head if tail.isdigit() else name


FIGURES = {
    "accuracy_vs_flops": {"stale": "stale", NONE: "untuned", LONG: "main"},
    "hundred_pictures": {NONE_OF_FEW: "untuned", FEW: "main"},
}
"""figure -> repair -> name of the track in ``quality_curves``"""


def figure_rows(block: Block, tracks: Mapping[str, str]) -> pd.DataFrame:
    """Return a block's rows as ``quality_curves`` takes them; ``tracks`` is one of FIGURES."""
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
        figure = quality_curves(figure_rows(blocks[0], tracks))
        figure.savefig(RESULTS / f"{name}.png", dpi=150, metadata={"Software": None})


if __name__ == "__main__":
    main()
