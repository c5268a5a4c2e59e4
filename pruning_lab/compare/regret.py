"""Regret: the accuracy lost by choosing a criterion before knowing which one is best."""

import numpy as np
import pandas as pd

from pruning_lab.errors import UserError

RESAMPLES = 9999


def regrets(table: pd.DataFrame) -> pd.DataFrame:
    """Return, for each criterion, its chance of being the best and what it falls short by.

    ``table`` has a row for each network and a column for each criterion; higher is better. Networks
    are drawn anew with replacement. ``p_best`` is the share of draws in which a criterion's mean is
    the highest (ties share it); ``regret`` is how far its mean lies below the highest one, in the
    units of ``table``, and ``low``, ``high`` are the 2.5 and 97.5 % quantiles of that over the
    draws. A regret is never below 0, so its interval is not centred.

    Raises:
        UserError: for fewer than two networks or criteria, or gaps.
    """
    _check(table)
    values = table.to_numpy(float)
    draw = np.random.default_rng(0)
    counts = draw.multinomial(len(values), np.full(len(values), 1 / len(values)), RESAMPLES)
    means = counts @ values / len(values)
    best = means.max(1, keepdims=True)
    first = means >= best - 1e-12
    short = best - means
    low, high = np.quantile(short, (0.025, 0.975), axis=0)
    found = values.mean(0)
    return pd.DataFrame(
        {
            "p_best": (first / first.sum(1, keepdims=True)).mean(0),
            "regret": found.max() - found,
            "low": low,
            "high": high,
        },
        index=table.columns,
    ).sort_values("regret", kind="stable")


def regret_elsewhere(table: pd.DataFrame) -> pd.DataFrame:
    """Return what it costs to choose the criterion that is best on all other pairs.

    ``table`` has a row for each pair of model and data set. For each row: ``chosen``, the criterion
    with the highest mean over the other rows, ``best``, the one that is best in this row, and
    ``regret``, how far the chosen one lies below it.

    Raises:
        UserError: for fewer than two pairs or criteria, or gaps.
    """
    _check(table)
    rows = []
    for pair, own in table.iterrows():
        chosen = str(table.drop(index=pair).mean().idxmax())
        rows.append((pair, chosen, str(own.idxmax()), float(own.max() - own[chosen])))
    return pd.DataFrame(rows, columns=["pair", "chosen", "best", "regret"]).set_index("pair")


def _check(table: pd.DataFrame) -> None:
    rows, columns = table.shape
    gaps = int(table.isna().sum().sum())
    if min(rows, columns) < 2 or gaps:
        raise UserError(
            f"Regrets need at least two rows and two criteria, without gaps; there are "
            f"{rows} and {columns}, with {gaps} gaps."
        )
