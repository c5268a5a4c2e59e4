"""The intervals of sampled Shapley values hold the exact values as often as they say."""

import numpy as np
import pytest

from benchmarks import intervals
from benchmarks.coverage import CASES, SEEDS, covered


def test_nineteen_of_twenty_intervals_hold_the_exact_value():
    found = covered("mean", CASES["2 pairs"], range(25))  # 500 intervals
    assert found[0.95] == pytest.approx(0.95, abs=0.03)
    assert found[0.8] == pytest.approx(0.8, abs=0.06)


@pytest.mark.parametrize("name", intervals.DISTRIBUTIONS)
@pytest.mark.parametrize(("reduction", "least"), [("mean", 0.94), ("mean_abs", 0.91)])
def test_intervals_of_the_total_error_cover_heavy_tails_of_64_samples(name, reduction, least):
    by_student, built = intervals.covered(name, reduction, 64, 4000)
    assert least <= built <= 0.97
    assert built >= by_student


@pytest.mark.parametrize("name", intervals.DISTRIBUTIONS)
@pytest.mark.parametrize("reduction", intervals.REDUCTIONS)
def test_exact_scores_of_the_distributions_are_those_of_many_samples(name, reduction):
    distribution = intervals.DISTRIBUTIONS[name]
    rows = distribution.draw(np.random.default_rng(0), (400_000, 1))
    found = intervals.estimated(rows, reduction).scores.item()
    assert found == pytest.approx(intervals.exact(distribution, reduction), abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["mean", "mean_plus_2_std"])
@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_with_and_without_a_rule(reduction, options):
    assert 0.93 <= covered(reduction, options, range(SEEDS))[0.95] <= 0.97
