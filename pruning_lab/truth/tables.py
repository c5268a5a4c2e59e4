"""The verdicts on criteria, layer by layer and over all layers, with intervals."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from pruning_lab.attributions.removals import first_of, sets_of
from pruning_lab.compare.agreement import spearman
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
    ``shapley`` with the Shapley values among the scores; ``greedy``: the share of the greedy
    oracle's units that are among as many of the criterion's. ``_low`` and ``_high`` are ends of
    95 % intervals, by bootstrap over the samples.
    """
    return pd.DataFrame([_row(each, name) for each in truths for name in each.scores])


def _row(truth: LayerTruth, name: str) -> dict[str, object]:
    forward, reverse, scores = truth.forward[name], truth.reverse[name], truth.scores[name]
    row: dict[str, object] = {
        "criterion": name, "layer": truth.layer, "units": truth.units,
        "rise": forward.mean(), "rise_half": _half(forward),
        "reverse": reverse.mean(), "reverse_half": _half(reverse),
    }  # fmt: skip
    row |= _interval("harm", _ratio, forward, truth.chance)
    for size, rises in truth.sets.items():
        own = first_of(np.argsort(scores, kind="stable"), [size])[0]
        place = int((sets_of(truth.units, size) == own).all(1).argmax())
        row |= _interval(ORACLE.format(size), lambda r, place=place: _rank(r.mean(0), place), rises)
    if 1 in truth.sets:
        row |= _interval("leave_one_out", lambda r: spearman(scores, r.mean(0)), truth.sets[1])
    if SHAPLEY in truth.scores and name != SHAPLEY:
        row["shapley"] = spearman(scores, truth.scores[SHAPLEY])
    lowest = np.argsort(scores, kind="stable")[: len(truth.greedy)]
    row["greedy"] = len({*truth.greedy} & {*lowest.tolist()}) / max(1, len(truth.greedy))
    return row


def overall(truths: Sequence[LayerTruth], costs: Mapping[str, Cost]) -> pd.DataFrame:
    """One row a criterion over all layers that it scores, least harm first.

    ``harm`` is the sum over these layers of the rises over the same sum of random orders,
    ``reverse`` the same highest score first, both with 95 % intervals by bootstrap over the
    samples; the others are means over the layers that have them. ``seconds``, ``forward`` and
    ``backward`` are what all its scores took.
    """
    layers, rows = by_layer(truths), []
    means = [key for key in layers if key in MEASURES or key.startswith(ORACLE.format(""))]
    means = [key for key in means if not key.endswith(("_low", "_high"))]
    for name, own in layers.groupby("criterion", sort=False):
        scored = [each for each in truths if name in each.scores]
        chance = np.stack([each.chance for each in scored], 1)
        row: dict[str, object] = {"criterion": name, "layers": len(scored)}
        for key in ("forward", "reverse"):
            rises = np.stack([getattr(each, key)[name] for each in scored], 1)
            row |= _interval({"forward": "harm"}.get(key, key), _ratio, rises, chance)
        row |= own[means].mean().to_dict()
        cost = costs.get(str(name), Cost())
        row |= {"seconds": cost.seconds, "forward": cost.forward, "backward": cost.backward}
        rows.append(row)
    return pd.DataFrame(rows).sort_values("harm", kind="stable", ignore_index=True)


def _half(values: np.ndarray) -> float:
    return float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * stats.sem(values))


def _ratio(rises: np.ndarray, chance: np.ndarray) -> float:
    return float(rises.sum() / chance.sum())


def _rank(rises: np.ndarray, place: int) -> float:
    """As ``oracle_rank``: sets that do the same harm count half."""
    less, same = (rises < rises[place]).sum(), (rises == rises[place]).sum() - 1
    return float((less + same / 2) / max(1, len(rises) - 1))


def _interval(key: str, of: Callable[..., float], *samples: np.ndarray) -> dict[str, float]:
    """A statistic of arrays (samples, ...), and the ends of its interval by bootstrap."""
    stream, count = np.random.default_rng(0), len(samples[0])
    draws = [stream.integers(count, size=count) for _ in range(DRAWS)]
    values = [of(*(each[draw] for each in samples)) for draw in draws]
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {key: of(*samples), f"{key}_low": float(low), f"{key}_high": float(high)}
