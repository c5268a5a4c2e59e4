"""Compare criteria with random orders: in each layer, over layers, and over networks.

The loss due to random removal differs between layers by a factor of a hundred, so a few layers
dominate sums and ratios: layers with a large loss dominate a sum, layers with almost none a mean of
ratios. Two kinds of statistics avoid this and give every layer the same weight.

- ``quantile``: the share of random orders of the same layer that do less harm. 0: better than all
  random orders; 0.5: as good as a random order. Equal orders count half, so a layer in which no
  removal does any harm gives 0.5.
- ``points_vs_random`` and ``nats_vs_random`` measure the size of the difference: what the primary
  measure loses (percentage points) and the rise of the capped loss, minus the mean of the random
  orders of the same layer. Negative is better. Where random removal does no harm, they are about 0.

Ratios to random removal are not computed: they are unbounded where random removal does no harm.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from pruning_lab.attributions.evidence.removals import oracle_rank
from pruning_lab.compare.agreement import spearman, spearman_of_rows
from pruning_lab.compare.style import style_of
from pruning_lab.ground_truth.layer import Curve, LayerTruth
from pruning_lab.profiling.passes import ScoringCost

RANDOM = "random orders"
"""The name of random orders in the tables."""

RESAMPLES = 500
"""Number of bootstrap resamples of the samples, for the oracle's intervals."""

LEVEL = 0.95
"""Confidence level of all intervals."""

SHAPLEY = "shapley"

MEASURES = ("quantile", "points_vs_random", "nats_vs_random")
"""Columns that compare with random orders; they have intervals."""

AGREEMENT = ("leave_one_out", SHAPLEY, "greedy")
"""Columns of agreement with other rankings."""

COSTS = ("forward", "backward", "seconds")

VERSUS = (
    "Points and nats vs random: {measure} lost and rise of the capped loss, minus the mean of the "
    "random orders; negative is better."
)
"""The explanation of two columns, with the label of the primary measure."""


def by_layer(truths: Sequence[LayerTruth]) -> pd.DataFrame:
    """Return one row for each layer and criterion, and for each layer and random order.

    ``order`` is the number of the random order, NaN for a criterion. ``points`` (what the primary
    measure loses) and ``nats`` (rise of the capped loss) are means over the samples and over the
    measured numbers of removals. ``MEASURES`` compare them with the layer's random orders (a random
    order with all the others); the quantile is that of ``nats``: it has fewer ties. ``reverse`` is
    the quantile when the highest scores are removed first, only after the largest number of
    removals: near 1 for a good criterion. ``oracle_k``: the share of all other sets of k units that
    do less harm than the criterion's, with a 95 % interval by bootstrap over the samples.
    ``leave_one_out``: Spearman's correlation with the harm of single removals; ``shapley``: with
    the Shapley values among the scores; ``greedy``: overlap with the greedy oracle's units, 0 by
    chance and 1 if all are the same.
    """
    rows: list[dict[str, Any]] = []
    for truth in truths:
        about = {"layer": truth.layer, "units": truth.units}
        for name in truth.scores:
            rows.append({"criterion": name, **about, "order": np.nan, **_criterion(truth, name)})
        for number, curve in enumerate(truth.random):
            others = [*truth.random[:number], *truth.random[number + 1 :]]
            rows.append({"criterion": RANDOM, **about, "order": number, **_beside(curve, others)})
    return pd.DataFrame(rows)


def _criterion(truth: LayerTruth, name: str) -> dict[str, float]:
    scores, row = truth.scores[name], _beside(truth.forward[name], truth.random)
    last = [curve.nats[-1] for curve in truth.random]
    row["reverse"] = quantile(truth.reverse[name].nats[-1], last)
    for size, rises in truth.sets.items():
        row |= _interval(f"oracle_{size}", partial(oracle_rank, scores, size), rises)
    if 1 in truth.sets:
        row |= _interval("leave_one_out", partial(spearman_of_rows, scores), truth.sets[1])
    if SHAPLEY in truth.scores and name != SHAPLEY:
        row[SHAPLEY] = spearman(scores, truth.scores[SHAPLEY])
    row["greedy"] = _beyond_chance(truth, scores)
    return row


def _beside(own: Curve, random: Sequence[Curve]) -> dict[str, float]:
    """Compare a curve with those of random orders."""
    nats = [curve.nats.mean() for curve in random]
    points = np.mean([curve.points.mean() for curve in random])
    return {
        "points": own.points.mean(),
        "nats": own.nats.mean(),
        "quantile": quantile(own.nats.mean(), nats),
        "points_vs_random": own.points.mean() - points,
        "nats_vs_random": own.nats.mean() - np.mean(nats),
    }


def quantile(own: float, random: Sequence[float]) -> float:
    """Return the share of ``random`` below ``own``; equal ones count half (mid-rank)."""
    harms = np.asarray(random)
    return float(((harms < own) + (harms == own) / 2).mean())


def overall(layers: pd.DataFrame, costs: Mapping[str, ScoringCost]) -> pd.DataFrame:
    """Return one row for each criterion, lowest quantile first, and one for the random orders.

    ``layers`` is the table ``by_layer`` of one network. All columns are means over the layers that
    the criterion can score. Those of ``MEASURES`` have 95 % intervals ``_low`` and ``_high`` by
    Student's t over the layers. In the row of the random orders these are the ends of the range
    that holds 95 % of all random orders (Student's t, from the spread of their means over the
    layers): a criterion inside it cannot be distinguished from one random order. Criteria that
    refuse some layers come last. ``seconds``, ``forward`` and ``backward`` are the cost of all
    scores.
    """
    table = _summary(layers, "layers")
    spent = [costs.get(name, ScoringCost()) for name in table["criterion"]]
    return table.assign(**{key: [getattr(cost, key) for cost in spent] for key in COSTS})


def over_networks(networks: Sequence[pd.DataFrame], tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return the table of ``overall`` for several networks.

    ``networks`` are their tables from ``by_layer``, ``tables`` those from ``overall``, for the
    costs. A network's value is its mean over layers. Intervals are by Student's t over these
    values: they hold for networks of this kind trained from other seeds, without assumptions about
    layers. The spread of the random orders is that of their means over the networks.
    """
    blocks = []
    for layers in networks:
        groups = layers.groupby(["criterion", "order"], dropna=False, sort=False)
        means = groups.mean(numeric_only=True)
        blocks.append(means.assign(layers=groups.size()).reset_index())
    table = _summary(pd.concat(blocks, ignore_index=True), "networks")
    costs = pd.concat(tables).groupby("criterion")[list(COSTS)].mean()
    return table.join(costs, on="criterion")


def _summary(blocks: pd.DataFrame, of: str) -> pd.DataFrame:
    """Average over the rows of each criterion or random order; ``of``: layers or networks."""
    means = ["points", "nats", "reverse", *_extras(blocks)]
    rows = []
    for name, group in blocks.groupby("criterion", sort=False):
        row: dict[str, object] = {"criterion": name, of: len(group)}
        if of == "networks":
            row["layers"] = group["layers"].mean()
        if name == RANDOM:
            group = group.groupby("order").mean(numeric_only=True)  # one row per random order
            row[of] = len(blocks[blocks["criterion"] == name]) // len(group)
        for key in MEASURES:
            row |= _spread(key, group[key].to_numpy(), one=name == RANDOM)
        row |= group.reindex(columns=means).mean().to_dict()
        rows.append(row)
    table = pd.DataFrame(rows)
    partly = table["layers"] < table["layers"].max()
    order = ["partly", "quantile"]
    table = table.assign(partly=partly).sort_values(order, kind="stable", ignore_index=True)
    return table.drop(columns="partly")


def _extras(table: pd.DataFrame) -> list[str]:
    """Return the columns of oracle ranks and of agreement with other rankings."""
    return [*table.filter(regex=r"^oracle_\d+$"), *(key for key in AGREEMENT if key in table)]


def _spread(key: str, values: np.ndarray, one: bool) -> dict[str, float]:
    """Return the mean and the ends of its interval, or with ``one`` of the range of values."""
    mean, half, count = values.mean(), float("nan"), len(values)
    if count > 1:
        half = stats.t.ppf((1 + LEVEL) / 2, count - 1) * values.std(ddof=1)
        half = half if one else half / np.sqrt(count)
    low, high = mean - half, mean + half
    if key == "quantile":  # a share
        low, high = np.clip([low, high], 0, 1)
    return {key: mean, f"{key}_low": low, f"{key}_high": high}


def _beyond_chance(truth: LayerTruth, scores: np.ndarray) -> float:
    """Return the overlap with the greedy oracle's units, scaled to 0 by chance and 1 for all."""
    count = len(truth.greedy)
    if not count:
        return float("nan")
    lowest = np.argsort(scores, kind="stable")[:count].tolist()
    chance = count / truth.units
    return (len({*truth.greedy} & {*lowest}) / count - chance) / (1 - chance)


def _interval(
    key: str, of: Callable[[np.ndarray], np.ndarray], rises: np.ndarray
) -> dict[str, float]:
    """Return a statistic of the means of ``rises`` (samples, sets), with its bootstrap interval.

    ``of`` maps rows of means (rows, sets) to the statistic of each row.
    """
    stream, count = np.random.default_rng(0), len(rises)
    drawn = stream.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    (value,) = of(rises.mean(0, keepdims=True))
    low, high = np.quantile(of(drawn @ rises / count), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {key: float(value), f"{key}_low": float(low), f"{key}_high": float(high)}


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table of ``overall`` or ``over_networks`` as formatted text."""
    names = [style_of(name).label for name in table["criterion"]]
    shown = pd.DataFrame(index=pd.Index(names, name="criterion"))
    for key in ("networks", "layers"):
        if key in table:
            shown[key] = [f"{value:g}" for value in table[key]]
    labels = ("quantile", "points vs random", "nats vs random")
    for key, label, form in zip(MEASURES, labels, ("z.2f", "+z.2f", "+z.3f"), strict=True):
        ends = zip(*(table[f"{key}{end}"] for end in ("", "_low", "_high")), strict=True)
        shown[label] = [
            f"{value:{form}}" + ("" if np.isnan(low) else f" ({low:{form}} to {high:{form}})")
            for value, low, high in ends
        ]
    for key in ("reverse", *(key for key in _extras(table) if table[key].notna().any())):
        shown[key.replace("_", " ")] = ["" if pd.isna(v) else f"{v:.2f}" for v in table[key]]
    for key in COSTS:
        shown[key] = [f"{value:,.0f}" if value >= 10 else f"{value:.2g}" for value in table[key]]
    return shown
