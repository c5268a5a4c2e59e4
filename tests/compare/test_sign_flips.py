"""Exact p values, equivalence and bands, by hand, by another library and by simulation."""

import numpy as np
import pytest
from scipy import stats

from pruning_lab.compare.statistics import ENUMERATED, band_factor, sign_flip_p
from pruning_lab.errors import UserError


def test_sign_flips_by_hand():
    """Of (1, 2, 3) only all signs alike give a sum as large as 6: 2 of 8 flips."""
    assert sign_flip_p([1, 2, 3]) == 2 / 8
    assert sign_flip_p([1, 2, -3]) == 1
    assert sign_flip_p([3, 3, -1]) == 4 / 8  # |sum| >= 5: 5, 7 and their opposites


@pytest.mark.parametrize("n", [8, ENUMERATED + 4])
def test_sign_flips_are_scipys_permutation_test(n):
    values = np.random.default_rng(n).normal(0.5, 1, n)
    expected = stats.permutation_test(
        (values, np.zeros(n)), lambda a, b, axis: (a - b).mean(axis), permutation_type="samples",
        vectorized=True, n_resamples=np.inf if n <= ENUMERATED else 20000, rng=1,
    ).pvalue  # fmt: skip
    tolerance = 1e-12 if n <= ENUMERATED else 0.02
    assert sign_flip_p(values) == pytest.approx(expected, abs=tolerance)


def test_flips_are_exact_up_to_16_pairs_and_ties_count():
    assert sign_flip_p(np.ones(16)) == 2**-15
    assert sign_flip_p([0.1, 0.2, -0.3] * 2) == 1  # sums are 0 but for rounding
    assert sign_flip_p([0.0, 0.0]) == 1
    with pytest.raises(UserError, match="must be finite"):
        sign_flip_p([np.nan, 1, 2])


@pytest.mark.parametrize("n", [2, 3, 6, 12])
def test_curves_of_two_values_have_a_finite_band(n):
    draw = np.random.default_rng(n)
    for _ in range(50):
        curves = draw.choice([0.8, 0.9], (n, 7))
        factor = band_factor(curves)
        assert stats.t.ppf(0.975, n - 1) * 0.99 <= factor < np.inf


def test_for_one_step_a_band_is_students_interval():
    curve = np.random.default_rng(3).normal(size=(12, 1))
    assert band_factor(curve) == pytest.approx(stats.t.ppf(0.975, 11))
    assert band_factor(np.repeat(curve, 5, axis=1)) == pytest.approx(band_factor(curve))
    assert band_factor(np.ones((12, 3))) == stats.t.ppf(0.975, 11)  # no spread: nothing to add


def test_a_band_holds_all_steps_as_often_as_it_says():
    """12 curves over 6 steps that go together a little, 400 times."""
    draw, held, alone = np.random.default_rng(5), 0, 0
    for _ in range(400):
        curves = draw.normal(size=(12, 6)) + draw.normal(size=(12, 1))
        error = curves.std(0, ddof=1) / np.sqrt(12)
        distance = np.abs(curves.mean(0) / error)
        held += (distance <= band_factor(curves)).all()
        alone += (distance <= stats.t.ppf(0.975, 11)).all()
    assert 0.92 <= held / 400 <= 0.98
    assert alone / 400 < 0.87  # bands for each step alone do not hold for all


@pytest.mark.parametrize("test", [sign_flip_p, band_factor])
def test_one_pair_tells_nothing(test):
    with pytest.raises(UserError, match="at least two are needed"):
        test(np.ones((1, 2)) if test is band_factor else [1.0])
