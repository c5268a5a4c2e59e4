"""The intervals of sampled Shapley values hold the exact values as often as they say."""

import pytest

from benchmarks.coverage import CASES, SEEDS, covered


def test_nineteen_of_twenty_intervals_hold_the_exact_value():
    found = covered("mean", CASES["2 pairs"], range(25))  # 500 intervals
    assert found[0.95] == pytest.approx(0.95, abs=0.03)
    assert found[0.8] == pytest.approx(0.8, abs=0.06)


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["mean", "mean_plus_2_std"])
@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_with_and_without_a_rule(reduction, options):
    assert 0.93 <= covered(reduction, options, range(SEEDS))[0.95] <= 0.97
