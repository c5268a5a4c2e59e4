"""The verdicts on criteria, layer by layer and over all layers, with intervals."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd
from scipy import stats

from pruning_lab.attributions.removals import oracle_rank
from pruning_lab.compare.agreement import spearman, spearman_of_rows
from pruning_lab.ledger import Cost
from pruning_lab.truth.layer import LayerTruth

DRAWS = 500
"""Of the bootstrap over samples, behind 95 % intervals."""

LEVEL = 0.95

ORACLE = "oracle_{}"
"""The column of the oracle rank of a size."""

SHAPLEY = "shapley"

MEASURES = ("leave_one_out", "shapley", "greedy")
"""Columns of agreement with what a criterion may be held against."""


def by_layer(truths: Sequence[LayerTruth]) -> pd.DataFrame:
    """One row a criterion and layer.

    ``rise`` is the mean rise of the loss over all removals, lowest score first (``_half``: half its
    95 % interval over the samples, by Student's t), ``reverse`` highest first; ``harm`` is ``rise``
    over that of random orders. ``oracle_k``: which share of all other sets of k units do less harm
    than the criterion's. ``leave_one_out``: Spearman's correlation with the single removals;
    ``shapley`` with the Shapley values among the scores; ``greedy``: how many of the greedy
    oracle's units are among as many of the criterion's, 0 by chance and 1 if all are. ``_low`` and
    ``_high`` are ends of 95 % intervals, by bootstrap over the samples, and over the random orders
    as well. Harm is NaN where random removal raises the loss by nothing that could be told from 0.
    """
    return pd.DataFrame([_row(each, name) for each in truths for name in each.scores])


def _row(truth: LayerTruth, name: str) -> dict[str, object]:
    forward, reverse, scores = truth.forward[name], truth.reverse[name], truth.scores[name]
    row: dict[str, object] = {
        "criterion": name, "layer": truth.layer, "units": truth.units,
        "rise": forward.mean(), "rise_half": _half(forward),
        "reverse": reverse.mean(), "reverse_half": _half(reverse),
    }  # fmt: skip
    row |= _share_of_chance("harm", [forward], [truth.chance])
    for size, rises in truth.sets.items():
        row |= _interval(ORACLE.format(size), partial(oracle_rank, scores, size), rises)
    if 1 in truth.sets:
        row |= _interval("leave_one_out", partial(spearman_of_rows, scores), truth.sets[1])
    if SHAPLEY in truth.scores and name != SHAPLEY:
        row["shapley"] = spearman(scores, truth.scores[SHAPLEY])
    row["greedy"] = _beyond_chance(truth, scores)
    return row


def overall(
    truths: Sequence[LayerTruth], layers: pd.DataFrame, costs: Mapping[str, Cost]
) -> pd.DataFrame:
    """One row a criterion over all layers that it scores, least harm first.

    ``layers`` is ``by_layer(truths)``.
    Those that refuse some layers come last: their harm is that in other layers. ``harm`` is the sum
    over the layers of the rises over the same sum of random orders, ``reverse`` the same highest
    score first; the others are means over the layers that have them. ``seconds``, ``forward`` and
    ``backward`` are what all scores took.
    """
    rows = []
    means = [key for key in layers if key in MEASURES or key.startswith(ORACLE.format(""))]
    means = [key for key in means if not key.endswith(("_low", "_high"))]
    for name, own in layers.groupby("criterion", sort=False):
        scored = [each for each in truths if name in each.scores]
        chance = [each.chance for each in scored]
        row: dict[str, object] = {"criterion": name, "layers": len(scored)}
        row |= _share_of_chance("harm", [each.forward[str(name)] for each in scored], chance)
        row |= _share_of_chance("reverse", [each.reverse[str(name)] for each in scored], chance)
        row |= own[means].mean().to_dict()
        cost = costs.get(str(name), Cost())
        row |= {"seconds": cost.seconds, "forward": cost.forward, "backward": cost.backward}
        rows.append(row)
    found = pd.DataFrame(rows)
    partly = found["layers"] < found["layers"].max()
    by = found.assign(partly=partly).sort_values(["partly", "harm"], kind="stable")
    return by.drop(columns="partly").reset_index(drop=True)


def _half(values: np.ndarray) -> float:
    return float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * stats.sem(values))


def _beyond_chance(truth: LayerTruth, scores: np.ndarray) -> float:
    """The overlap with the greedy oracle's units, on a scale from chance, 0, to all of them, 1."""
    count = len(truth.greedy)
    if not count:
        return float("nan")
    lowest = np.argsort(scores, kind="stable")[:count].tolist()
    chance = count / truth.units
    return (len({*truth.greedy} & {*lowest}) / count - chance) / (1 - chance)


def _share_of_chance(
    key: str, rises: Sequence[np.ndarray], chance: Sequence[np.ndarray]
) -> dict[str, float]:
    """The sum of rises (samples,) over layers as a share of that of random orders, with its ends.

    Samples are drawn anew for all layers together, the orders of ``chance`` (draws, samples) layer
    by layer.
    """
    stream, nan = np.random.default_rng(0), float("nan")
    own, shares = np.sum(rises, axis=0), []
    samples = len(own)
    for _ in range(DRAWS):
        some = stream.integers(samples, size=samples)
        orders = (each[stream.integers(len(each), size=len(each))] for each in chance)
        shares.append((own[some].mean(), sum(each[:, some].mean() for each in orders)))
    above, below = np.array(shares).T
    if np.quantile(below, (1 - LEVEL) / 2) <= 0:
        return {key: nan, f"{key}_low": nan, f"{key}_high": nan}
    share = own.mean() / sum(each.mean() for each in chance)
    return {key: float(share)} | _ends(key, above / below)


def _interval(
    key: str, of: Callable[[np.ndarray], np.ndarray], rises: np.ndarray
) -> dict[str, float]:
    """A statistic of the mean rises of sets, from (samples, sets), with its ends.

    ``of`` gives it for each row of means (rows, sets).
    """
    stream, count = np.random.default_rng(0), len(rises)
    drawn = stream.multinomial(count, np.full(count, 1 / count), size=DRAWS)
    (value,) = of(rises.mean(0, keepdims=True))
    return {key: float(value)} | _ends(key, of(drawn @ rises / count))


def _ends(key: str, values: np.ndarray) -> dict[str, float]:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {f"{key}_low": float(low), f"{key}_high": float(high)}
