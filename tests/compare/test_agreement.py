"""Agreement of scorings, counted by hand."""

import numpy as np
import pytest

from pruning_lab.compare.agreement import (
    between_criteria,
    between_scorings,
    kendall,
    overlap,
    spearman,
    spearman_of_rows,
)
from pruning_lab.errors import UserError

ONE = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
OTHER = np.array([2.0, 1.0, 3.0, 5.0, 4.0])


def test_correlations_by_hand():
    # two swaps of neighbours: squared differences of ranks 1 + 1 + 0 + 1 + 1
    assert spearman(ONE, OTHER) == pytest.approx(1 - 6 * 4 / (5 * 24))
    assert kendall(ONE, OTHER) == pytest.approx((8 - 2) / 10)


def test_tau_b_takes_ties_into_account():
    tied = np.array([1.0, 1.0, 2.0])
    # of three pairs one is tied on one side: 2 / sqrt(3 * 2)
    assert kendall(np.array([1.0, 2.0, 3.0]), tied) == pytest.approx(2 / np.sqrt(6))


def test_constants_and_pairs_have_no_correlation():
    assert np.isnan(spearman(ONE, np.ones(5)))
    assert np.isnan(kendall(ONE[:2], ONE[:2]))


def test_correlations_with_many_rows_are_those_with_each():
    stream = np.random.default_rng(0)
    one, rows = stream.random(9), stream.integers(0, 5, (6, 9)).astype(float)
    rows[5] = 1  # constant
    expected = [spearman(one, row) for row in rows]
    np.testing.assert_allclose(spearman_of_rows(one, rows), expected)
    assert np.isnan(spearman_of_rows(one[:2], rows[:, :2])).all()


def test_overlap_counts_the_lowest():
    # 0.4 of five units are two: {0, 1} on both sides; 0.2 is one: {0} and {1}
    assert overlap(ONE, OTHER, 0.4) == 1
    assert overlap(ONE, OTHER, 0.2) == 0
    assert overlap(ONE, ONE[::-1], 0.6) == pytest.approx(1 / 3)
    assert overlap(ONE, OTHER, 0.01) == 0  # at least one unit


def test_overlap_by_chance_is_the_share():
    rng = np.random.default_rng(0)
    found = [overlap(*rng.random((2, 50)), 0.3) for _ in range(2000)]
    assert np.mean(found) == pytest.approx(0.3, abs=0.01)


def test_criteria_are_compared_layer_by_layer():
    scores = {
        "shapley": {"a": ONE, "b": ONE},
        "random": {"a": OTHER, "b": ONE, "c": ONE},
        "taylor": {"a": ONE[::-1]},
    }
    found = between_criteria(scores)
    assert found[["one", "other", "layer", "units"]].to_numpy().tolist() == [
        ["random", "taylor", "a", 5],
        ["random", "shapley", "a", 5],
        ["random", "shapley", "b", 5],
        ["taylor", "shapley", "a", 5],
    ]
    assert found["spearman"].tolist() == pytest.approx([-0.8, 0.8, 1, -1])
    assert found["overlap"].tolist() == [0, 1, 1, 0]
    assert found["chance"].tolist() == [2 / 5] * 4


def test_scorings_of_one_criterion_are_compared_in_pairs():
    found = between_scorings([{"a": ONE}, {"a": OTHER}, {"a": ONE}])
    assert found["layer"].tolist() == ["a", "a", "a"]
    assert found["kendall"].tolist() == pytest.approx([0.6, 1, 0.6])


def test_scorings_of_other_networks_are_refused():
    with pytest.raises(UserError, match=r"of different layers, or of different widths"):
        between_scorings([{"a": ONE}, {"a": ONE[:3]}])
