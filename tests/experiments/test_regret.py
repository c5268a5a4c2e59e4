"""Regrets by hand, and the chance of being best by enumeration."""

from itertools import product

import numpy as np
import pandas as pd
import pytest

from experiments.compare_criteria.regret import regret_elsewhere, regrets
from pruning_lab.errors import UserError


def test_regrets_and_the_chance_of_being_best():
    table = pd.DataFrame({"a": [3.0, 1.0, 2.0], "b": [1.0, 2.0, 2.0], "c": [0.0, 0.0, 0.0]})
    found = regrets(table)
    assert found["regret"].to_dict() == pytest.approx({"a": 0, "b": 1 / 3, "c": 2})
    wins = []
    for rows in product(range(3), repeat=3):  # all draws of three networks
        means = table.iloc[list(rows)].mean()
        wins.append((means == means.max()) / (means == means.max()).sum())
    expected = pd.DataFrame(wins).mean()
    for name in "abc":
        assert found.loc[name, "p_best"] == pytest.approx(expected[name], abs=0.02)
    assert found["p_best"].sum() == pytest.approx(1)
    assert (found["low"] >= 0).all()
    assert found.loc["c", ["low", "high"]].tolist() == pytest.approx([5 / 3, 3])
    assert found.loc["a", "low"] == 0
    assert found.loc["a", "high"] == 1


def test_a_criterion_that_always_wins_costs_nothing():
    found = regrets(pd.DataFrame({"a": [1.0, 2, 3], "b": [0.0, 1, 2]}))
    assert found.loc["a"].tolist() == [1, 0, 0, 0]
    assert found.loc["b"].tolist() == pytest.approx([0, 1, 1, 1])


def test_the_choice_of_the_other_pairs_is_judged_on_the_one_left_out():
    table = pd.DataFrame({"a": [5.0, 1.0, 4.0], "b": [2.0, 3.0, 3.0]}, index=["x", "y", "z"])
    found = regret_elsewhere(table)
    assert found.loc["x"].tolist() == ["b", "a", 3]  # a: 2.5, b: 3 on y and z
    assert found.loc["y"].tolist() == ["a", "b", 2]
    assert found.loc["z"].tolist() == ["a", "a", 0]


@pytest.mark.parametrize("of", [regrets, regret_elsewhere])
@pytest.mark.parametrize("table", [[[1.0, 2.0]], [[1.0], [2.0]], [[1.0, np.nan], [1.0, 2.0]]])
def test_what_cannot_be_judged_is_refused(of, table):
    with pytest.raises(UserError, match="at least two rows and two criteria"):
        of(pd.DataFrame(table))
