"""Reduced batch after batch as numpy does it at once; errors by hand and by trial."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import skew
from scipy.stats import t as student

from pruning_lab.attributions.estimation.reduction import Estimate, Reducer
from pruning_lab.errors import UserError

AT_ONCE = {
    "mean": lambda rows: rows.mean(0),
    "sum": lambda rows: rows.sum(0),
    "mean_abs": lambda rows: np.abs(rows).mean(0),
    "mean_plus_2_std": lambda rows: rows.mean(0) + 2 * rows.std(0),
    "none": lambda rows: rows,
}


def reduced(rows, reduction, sizes):
    reducer = Reducer(reduction)
    for part in np.split(rows, np.cumsum(sizes)):
        if len(part):
            reducer.add(torch.from_numpy(part))
    return reducer.estimate().scores


@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    offset=st.sampled_from([0.0, 1.0, 1e6]),
)
def test_batches_do_not_matter(seed, sizes, offset):
    rows = offset + np.random.default_rng(seed).standard_normal((sum(sizes), 3))
    for reduction, at_once in AT_ONCE.items():
        found = reduced(rows, reduction, sizes)
        np.testing.assert_allclose(found, at_once(rows), rtol=1e-12, atol=1e-9)


def test_a_large_mean_does_not_swallow_a_small_spread():
    rows = np.array([[1e8], [1e8 + 2], [1e8], [1e8 + 2]])
    assert reduced(rows, "mean_plus_2_std", [1, 1, 1, 1]).tolist() == [1e8 + 3]


def test_a_callable_sees_all_samples():
    rows = np.arange(6.0).reshape(3, 2)
    assert reduced(rows, lambda scores: scores.max(0), [2]).tolist() == [4, 5]
    with pytest.raises(UserError, match=r"made shape \(3,\) out of the per-sample scores \(3, 2\)"):
        reduced(rows, lambda scores: scores.max(1), [2])


def drawn_scores(reduction, draws=6):
    """A reducer of 5 samples of 3 units with the variances of their draws, and what it was given.

    Skewed, so that third moments matter.
    """
    random = np.random.default_rng(0)
    rows, variances = random.exponential(size=(5, 3)) - 1, random.uniform(0, 0.1, (5, 3))
    reducer = Reducer(reduction, draws)
    for part in (slice(2), slice(2, None)):
        reducer.add(torch.from_numpy(rows[part]), torch.from_numpy(variances[part]))
    return reducer, rows, variances


def test_the_sampling_error_of_a_mean_is_that_of_its_draws():
    reducer, _, variances = drawn_scores("mean")
    expected = np.sqrt(variances.sum(0)) / 5
    np.testing.assert_allclose(reducer.estimate().sampling_error, expected, rtol=1e-12)


def test_the_errors_of_a_mean_of_absolute_values():
    reducer, rows, variances = drawn_scores("mean_abs")
    found = reducer.estimate()
    np.testing.assert_allclose(found.error, np.abs(rows).std(0, ddof=1) / np.sqrt(5), rtol=1e-12)
    np.testing.assert_allclose(found.sampling_error, np.sqrt(variances.sum(0)) / 5, rtol=1e-12)
    exact = Reducer("mean_abs")
    exact.add(torch.from_numpy(rows))
    assert exact.rows == []  # nothing is kept where nothing is drawn


def test_the_error_of_a_mean_is_the_standard_error_over_the_samples():
    reducer, rows, _ = drawn_scores("mean")
    found = reducer.estimate()
    np.testing.assert_allclose(found.error, rows.std(0, ddof=1) / np.sqrt(5), rtol=1e-12)
    assert found.degrees == 4


def test_errors_of_a_sum_are_those_of_the_mean_times_the_samples():
    mean, total = (drawn_scores(reduction)[0].estimate() for reduction in ("mean", "sum"))
    for name in ("sampling_error", "error"):
        np.testing.assert_allclose(getattr(total, name), 5 * getattr(mean, name), rtol=1e-12)
    assert total.relative_error == pytest.approx(mean.relative_error)


def test_the_skewness_is_that_of_the_samples_contributions():
    random = np.random.default_rng(0)
    rows = random.exponential(size=(30, 3)) - 1
    middle = rows - rows.mean(0)
    slope = 1 / rows.std(0)  # of 2 * sqrt(variance)
    contributions = {
        "mean": rows,
        "sum": rows,
        "mean_abs": np.abs(rows),
        "mean_plus_2_std": middle + slope * middle**2,
    }
    for reduction, expected in contributions.items():
        reducer = Reducer(reduction)
        for part in np.split(rows, [7, 12]):
            reducer.add(torch.from_numpy(part))
        np.testing.assert_allclose(reducer.estimate().skewness, skew(expected), rtol=1e-9)


@pytest.mark.parametrize("reduction", ["mean", "mean_plus_2_std"])
def test_scores_that_do_not_vary_have_no_skewness(reduction):
    reducer = Reducer(reduction)
    reducer.add(torch.full((5, 2), 0.1))
    assert reducer.estimate().skewness.tolist() == [0, 0]


def test_degrees_of_freedom_are_satterthwaites():
    equal = Reducer("mean", draws=4)
    equal.add(torch.randn(5, 2), torch.full((5, 2), 0.3))
    np.testing.assert_allclose(equal.estimate().sampling_degrees, 5 * 3, rtol=1e-12)
    reducer, _, variances = drawn_scores("mean")
    expected = variances.sum(0) ** 2 / (variances**2 / 5).sum(0)
    np.testing.assert_allclose(reducer.estimate().sampling_degrees, expected, rtol=1e-12)


def test_where_the_variances_are_not_known_the_sampling_error_is_not_either():
    reducer = Reducer("mean", known=False)
    reducer.add(torch.randn(5, 2))
    found = reducer.estimate()
    assert found.sampling_error is None
    assert found.sampling_degrees is None
    assert found.error is not None


def test_one_sample_says_nothing_of_others():
    reducer = Reducer("mean")
    reducer.add(torch.ones(1, 2))
    found = reducer.estimate()
    assert found.error is None
    assert np.isnan(found.relative_error)


def test_nothing_drawn_is_a_sampling_error_of_0():
    reducer = Reducer("mean_plus_2_std")
    reducer.add(torch.randn(5, 2))
    found = reducer.estimate()
    assert found.sampling_error.tolist() == [0, 0]
    np.testing.assert_array_equal(found.interval("sampling_error"), [found.scores] * 2)


def test_without_skewness_intervals_are_students_with_each_units_own_degrees():
    found = Estimate(
        np.ones(3), sampling_error=np.array([1.0, 2.0, 1.0]), error=np.array([1.0, 3.0, 0.0]),
        sampling_degrees=np.array([1.0, 30.0, 0.2]), degrees=np.array(9.0),
    )  # fmt: skip
    for of, half in (  # t at 97.5 %, with at least one degree
        ("sampling_error", np.array([12.706, 2 * 2.0423, 12.706])),
        ("error", np.array([1, 3, 0]) * 2.2622),
    ):
        np.testing.assert_allclose(found.interval(of), [1 - half, 1 + half], rtol=1e-4)
    assert found.interval("sampling_error", level=0.5)[1][0] == pytest.approx(1 + 1)


@pytest.mark.parametrize("level", [0.8, 0.95, 0.9999])
@pytest.mark.parametrize("skewness", [-3.0, -0.5, 0.0, 0.5, 3.0])
def test_a_bound_is_the_further_one_of_students_and_halls(level, skewness):
    n, score, error = 16, 2.0, 0.5
    found = Estimate(
        np.array([score]), error=np.array([error]), degrees=np.array(n - 1.0),
        skewness=np.array([skewness]),
    )  # fmt: skip
    quantile, root = student.ppf((1 + level) / 2, n - 1), skewness / np.sqrt(n)

    def transformed(t, aim):  # Hall's (1992) polynomial, whose quantiles are those of symmetry
        return t + root * t**2 / 3 + root**2 * t**3 / 27 + root / 6 - aim

    hall = [brentq(transformed, -1000, 1000, args=(aim,)) for aim in (quantile, -quantile)]
    expected = min(-quantile, -hall[0]), max(quantile, -hall[1])
    low, high = found.interval(level=level)
    np.testing.assert_allclose([(low[0] - score) / error, (high[0] - score) / error], expected)
    if skewness:
        assert (high[0] - score > score - low[0]) == (skewness > 0)


@pytest.mark.parametrize("of", ["error", "sampling_error"])
def test_there_is_no_interval_where_no_error_is_known(of):
    with pytest.raises(ValueError, match=f"there is no interval: the scores' {of} is unknown"):
        Estimate(np.zeros(2)).interval(of)


def test_the_relative_error_is_freed_of_what_the_noise_adds_to_the_scores():
    found = Estimate(np.array([3.0, 4.0]), error=np.array([0.0, 3.0]))
    assert found.relative_error == pytest.approx(3 / 4)  # sqrt(9 / (25 - 9))
    assert Estimate(np.array([3.0]), error=np.array([3.0])).relative_error == np.inf
    assert Estimate(np.zeros(1), error=np.zeros(1)).relative_error == np.inf
    assert Estimate(np.ones(1), error=np.zeros(1)).relative_error == 0


def drawn(reduction, draws, samples=200, units=2000, spread=1.0):
    """Truth, the raw scores, and the estimate of units that are all alike but for the draws."""
    random = np.random.default_rng(0)
    truth = np.repeat(random.normal(0, spread, size=(samples, 1)), units, 1)
    noisy = truth + random.normal(0, 1, (draws, samples, units))
    reducer, rows = Reducer(reduction, draws), noisy.mean(0)
    reducer.add(torch.from_numpy(rows), torch.from_numpy(noisy.var(0, ddof=1) / draws))
    return AT_ONCE[reduction](truth)[0], AT_ONCE[reduction](rows), reducer.estimate()


@pytest.mark.parametrize("draws", [2, 12])
def test_mean_plus_2_std_does_not_count_the_spread_of_the_draws(draws):
    truth, raw, found = drawn("mean_plus_2_std", draws)
    bias = np.abs(found.scores.mean() - truth)
    assert bias < 0.02
    assert raw.mean() - truth > 5 * bias


@pytest.mark.parametrize("reduction", ["mean", "mean_plus_2_std"])
@pytest.mark.parametrize("draws", [2, 12])
def test_the_sampling_error_that_is_told_is_the_one_that_is_made(reduction, draws):
    truth, _, found = drawn(reduction, draws)
    made = np.sqrt(np.square(found.scores - truth).mean())
    assert np.sqrt(np.square(found.sampling_error).mean()) == pytest.approx(made, rel=0.1)


@pytest.mark.parametrize("reduction", ["mean", "mean_plus_2_std"])
def test_19_of_20_intervals_reach_to_the_truth(reduction):
    truth, _, found = drawn(reduction, 2, samples=20, units=4000)
    low, high = found.interval("sampling_error")
    reached = (low <= truth) & (truth <= high)
    assert 0.9 < reached.mean() < 0.98


@pytest.mark.parametrize(("spread", "least"), [(0, 0.8), (0.1, 0.9), (0.2, 0.9)])
def test_intervals_reach_to_the_truth_where_the_draws_hide_the_spread(spread, least):
    truth, _, found = drawn("mean_plus_2_std", 2, samples=100, spread=spread)
    low, high = found.interval("sampling_error")
    reached = (low <= truth) & (truth <= high)
    assert least < reached.mean() < 0.98
