"""Regret: the loss from choosing a criterion without knowing the best one."""

import numpy as np
import pandas as pd

from pruning_lab.compare.statistics import RESAMPLES
from pruning_lab.errors import UserError


def regrets(table: pd.DataFrame) -> pd.DataFrame:
    """Return the probability that each criterion is the best, and its regret with an interval.

    ``table`` has a row for each network and a column for each criterion; higher is better. Networks
    are resampled with replacement. ``p_best`` is the share of resamples in which a criterion's mean
    is the highest (ties share it); ``regret`` is the distance of its mean below the highest one, in
    the units of ``table``; ``low`` and ``high`` are the 2.5 and 97.5 % quantiles of the regret over
    the resamples. A regret is never below 0, so its interval is not centred. Raises UserError for
    fewer than two networks or criteria, or gaps.
    """
    _check(table)
    values = table.to_numpy(float)
    rng = np.random.default_rng(0)
    counts = rng.multinomial(len(values), np.full(len(values), 1 / len(values)), RESAMPLES)
    means = counts @ values / len(values)
    regret = means.max(1, keepdims=True) - means
    is_best = regret <= 1e-12
    low, high = np.quantile(regret, (0.025, 0.975), axis=0)
    frame = pd.DataFrame({"p_best": (is_best / is_best.sum(1, keepdims=True)).mean(0)})
    frame["regret"] = values.mean(0).max() - values.mean(0)
    frame["low"], frame["high"] = low, high
    return frame.set_index(table.columns).sort_values("regret", kind="stable")


def regret_elsewhere(table: pd.DataFrame) -> pd.DataFrame:
    """Return, for each pair, the regret of the criterion that is best on all other pairs.

    ``table`` has a row for each pair of model and data set. For each row: ``chosen``, the criterion
    with the highest mean over the other rows; ``best``, the best criterion of this row; and
    ``regret``, the difference of their values in this row. Raises UserError for fewer than two
    pairs or criteria, or gaps.
    """
    _check(table)
    rows = []
    for pair, values in table.iterrows():
        chosen = str(table.drop(index=pair).mean().idxmax())
        rows.append((pair, chosen, str(values.idxmax()), float(values.max() - values[chosen])))
    return pd.DataFrame(rows, columns=["pair", "chosen", "best", "regret"]).set_index("pair")


def _check(table: pd.DataFrame) -> None:
    gaps = int(table.isna().sum().sum())
    if min(table.shape) < 2 or gaps:
        raise UserError(
            "Regrets need at least two rows and two criteria, without gaps; there are "
            f"{' and '.join(map(str, table.shape))}, with {gaps} gaps."
        )
