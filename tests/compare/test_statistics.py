"""Statistics against published worked examples, and intervals against simulation."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from pruning_lab.compare.statistics import (
    detectable_effect,
    half_width,
    holm,
    paired,
    ranking,
)
from pruning_lab.errors import UserError

DEMSAR = pd.DataFrame(  # Demšar, JMLR 7 (2006), table 6; a tie of voting is none before rounding
    [
        (0.763, 0.768, 0.771, 0.798),
        (0.599, 0.591, 0.590, 0.569),
        (0.954, 0.971, 0.968, 0.967),
        (0.628, 0.661, 0.654, 0.657),
        (0.882, 0.888, 0.886, 0.898),
        (0.936, 0.931, 0.916, 0.931),
        (0.661, 0.668, 0.609, 0.685),
        (0.583, 0.583, 0.563, 0.625),
        (0.775, 0.838, 0.866, 0.875),
        (1.000, 1.000, 1.000, 1.000),
        (0.940, 0.962, 0.965, 0.962),
        (0.619, 0.666, 0.614, 0.669),
        (0.972, 0.981, 0.9751, 0.975),
        (0.957, 0.978, 0.946, 0.970),
    ],
    columns=["C4.5", "C4.5+m", "C4.5+cf", "C4.5+m+cf"],
)

SLEEP = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]
"""Student, Biometrika 6 (1908): hours of sleep gained, one drug over the other."""


def test_ranks_and_friedmans_test_are_demsars():
    found = ranking(DEMSAR)
    assert found.ranks.round(3).to_dict() == {
        "C4.5+m+cf": 1.964, "C4.5+m": 2.0, "C4.5+cf": 2.893, "C4.5": 3.143,
    }  # fmt: skip
    assert found.blocks == 14
    # He has chi2 = 9.28 and no correction for ties: three of two and one of four of the 14 x 4.
    chi2 = 9.28 / (1 - (3 * (2**3 - 2) + 4**3 - 4) / (14 * (4**3 - 4)))
    assert found.statistic == pytest.approx(13 * chi2 / (14 * 3 - chi2), rel=2e-3)
    assert found.p == pytest.approx(stats.f.sf(found.statistic, 3, 39), abs=0.005)


def test_the_critical_difference_is_demsars():
    assert ranking(DEMSAR).critical_difference == pytest.approx(1.25, abs=0.005)
    tenth = ranking(DEMSAR, alpha=0.1)
    assert tenth.critical_difference == pytest.approx(1.12, abs=0.005)
    # At 0.1 he finds C4.5 worse than both with m, and the data cannot tell for C4.5+cf.
    assert tenth.alike == [["C4.5+m+cf", "C4.5+m", "C4.5+cf"], ["C4.5+cf", "C4.5"]]
    assert ranking(DEMSAR).alike == [list(found_order := ranking(DEMSAR).ranks.index)]
    assert found_order[0] == "C4.5+m+cf"


@pytest.mark.parametrize(
    ("blocks", "exact"), [(2, 1 / 6), (3, 1 / 36), (4, 1 / 216), (5, 1 / 1296)]
)
def test_few_blocks_that_agree_are_not_much(blocks, exact):
    table = pd.DataFrame(np.arange(3) + np.zeros((blocks, 1)), columns=list("abc"))
    assert ranking(table).p == pytest.approx(exact, abs=4 * np.sqrt(exact / 10000))


def test_the_level_is_kept_with_few_blocks():
    rng = np.random.default_rng(4)
    found = [ranking(pd.DataFrame(rng.random((4, 5)))).p for _ in range(200)]
    assert 0.01 <= np.mean(np.array(found) < 0.05) <= 0.09


def test_criteria_that_are_tied_in_every_block_do_not_differ():
    found = ranking(pd.DataFrame(np.full((4, 3), 0.1), columns=list("abc")))
    assert (found.statistic, found.p) == (0, 1)
    assert found.alike == [["a", "b", "c"]]


def test_ranks_need_three_criteria_and_two_blocks_without_gaps():
    for bad in (DEMSAR.iloc[:, :2], DEMSAR.iloc[:1], DEMSAR.mask(DEMSAR == 0.763)):
        with pytest.raises(UserError, match=r"three criteria in at least two blocks, without gaps"):
            ranking(bad)


def test_criteria_that_always_have_the_same_order_are_told_apart():
    table = pd.DataFrame(np.arange(3) + np.zeros((10, 1)), columns=list("abc"))
    found = ranking(table)
    assert found.ranks.to_dict() == {"c": 1, "b": 2, "a": 3}
    assert found.p == 1e-4  # none of 9999 random orders
    assert found.statistic == np.inf
    assert found.alike == [["c", "b"], ["b", "a"]]  # by 1.05 two ranks of ten blocks are alike


def test_the_paired_interval_is_students():
    found = paired(SLEEP)
    assert found.mean == pytest.approx(1.58)
    assert (found.low, found.high) == pytest.approx((0.7001142, 2.4598858), abs=1e-7)
    assert found.p == pytest.approx(0.002833, abs=5e-7)
    assert found.pairs == 10


def test_holms_adjustment_by_hand():
    # sorted 0.005 x 4, 0.01 x 3, 0.03 x 2, 0.04 x 1, which must not fall below 0.06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == pytest.approx([1, 1])
    assert holm([np.nan, 0.02]) == pytest.approx([np.nan, 0.04], nan_ok=True)


def test_the_detectable_effect_is_that_of_the_tables():
    # Cohen's tables: half a standard deviation takes 34 pairs at 0.05 and a power of 0.8
    assert detectable_effect(33) > 0.5 > detectable_effect(34)


def test_the_detectable_difference_is_found_four_times_in_five():
    rng = np.random.default_rng(0)
    draws = rng.normal(detectable_effect(12), 1, (20000, 12))
    assert (stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(
        0.8, abs=0.01
    )


def test_the_detectable_difference_goes_with_the_spread():
    values = np.array(SLEEP)
    wide = paired(10 * values).detectable
    assert wide == pytest.approx(10 * paired(values).detectable)
    assert paired(values).detectable == pytest.approx(values.std(ddof=1) * detectable_effect(10))


def test_of_differences_without_spread_nothing_more_is_known():
    for values in ([0.5, 0.5], [0.1] * 3, [0.0] * 25):
        same = paired(values)
        assert same.mean == pytest.approx(values[0])
        assert np.isnan([same.low, same.high, same.p, same.detectable]).all()


def test_one_pair_is_refused():
    with pytest.raises(UserError, match=r"1 pairs have no spread to estimate"):
        paired([0.1])


@pytest.mark.parametrize("pairs", [5, 12])
def test_coverage_by_students_t(pairs):
    rng = np.random.default_rng(1)
    found = [paired(values) for values in rng.normal(0.3, 1, (2000, pairs))]
    assert 0.94 < np.mean([each.low <= 0.3 <= each.high for each in found]) < 0.96


def test_coverage_by_the_bootstrap_where_differences_are_skewed():
    rng = np.random.default_rng(2)
    found = [paired(values) for values in rng.gamma(4, 1, (300, 30))]
    assert 0.91 < np.mean([each.low <= 4 <= each.high for each in found]) < 0.97


def test_from_twenty_pairs_on_the_interval_is_not_students():
    values = np.random.default_rng(3).gamma(1, 1, 20)
    low, high = stats.ttest_1samp(values, 0).confidence_interval()
    found = paired(values)
    assert found.low > low
    assert found.high > high  # skewed to the right, and so is the interval
    assert paired(values) == found


def test_gaps_do_not_count_in_an_interval():
    values = pd.Series([1.0, 3.0, 2.0])
    assert half_width(pd.Series([1.0, np.nan, 3.0, 2.0])) == half_width(values)
    assert half_width(values) == pytest.approx(4.302653 * 1 / 3**0.5)
