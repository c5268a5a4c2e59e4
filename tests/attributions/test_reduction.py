"""Reduced batch after batch as numpy does it at once; errors by hand and by trial."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruning_lab.attributions.reduction import Estimate, Reducer, estimate
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
    return estimate([reducer]).scores


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


def two_rounds(reduction):
    """Two rounds of 2 and 6 draws on 5 samples of 3 units, and what is added to each."""
    random = np.random.default_rng(0)
    rows, variances = random.normal(size=(2, 5, 3)), random.uniform(0, 0.1, (2, 5, 3))
    rounds = [Reducer(reduction, draws) for draws in (2, 6)]
    for each, x, v in zip(rounds, rows, variances, strict=True):
        each.add(torch.from_numpy(x[:2]), torch.from_numpy(v[:2]))
        each.add(torch.from_numpy(x[2:]), torch.from_numpy(v[2:]))
    return rounds, rows, variances


def test_rounds_weigh_by_their_draws():
    for reduction in ("mean", "sum", "mean_abs", "none", lambda scores: scores.max(0)):
        rounds, (first, second), _ = two_rounds(reduction)
        expected = AT_ONCE.get(reduction, reduction)((2 * first + 6 * second) / 8)
        np.testing.assert_allclose(estimate(rounds).scores, expected, rtol=1e-12)


def test_the_sampling_error_of_a_mean_is_that_of_its_draws():
    rounds, _, (first, second) = two_rounds("mean")
    one = estimate(rounds[:1])
    np.testing.assert_allclose(one.sampling_error, np.sqrt(first.sum(0)) / 5, rtol=1e-12)
    both = (2 / 8) ** 2 * first.sum(0) / 25 + (6 / 8) ** 2 * second.sum(0) / 25
    np.testing.assert_allclose(estimate(rounds).sampling_error, np.sqrt(both), rtol=1e-12)


def test_the_errors_of_a_mean_of_absolute_values():
    rounds, rows, variances = two_rounds("mean_abs")
    found = estimate(rounds)
    magnitude = np.abs((2 * rows[0] + 6 * rows[1]) / 8)
    np.testing.assert_allclose(found.error, magnitude.std(0, ddof=1) / np.sqrt(5), rtol=1e-12)
    drawn = (2 / 8) ** 2 * variances[0].sum(0) + (6 / 8) ** 2 * variances[1].sum(0)
    np.testing.assert_allclose(found.sampling_error, np.sqrt(drawn) / 5, rtol=1e-12)
    exact = Reducer("mean_abs")
    exact.add(torch.from_numpy(rows[0]))
    assert exact.rows == []  # nothing is kept where nothing is drawn


def test_the_error_of_a_mean_is_the_standard_error_over_the_samples():
    rounds, (rows, _), _ = two_rounds("mean")
    found = estimate(rounds[:1])
    np.testing.assert_allclose(found.error, rows.std(0, ddof=1) / np.sqrt(5), rtol=1e-12)
    assert found.degrees == 4


def test_errors_of_a_sum_are_those_of_the_mean_times_the_samples():
    mean, total = (estimate(two_rounds(reduction)[0]) for reduction in ("mean", "sum"))
    for name in ("sampling_error", "error"):
        np.testing.assert_allclose(getattr(total, name), 5 * getattr(mean, name), rtol=1e-12)
    assert total.relative_error == pytest.approx(mean.relative_error)


def test_degrees_of_freedom_are_satterthwaites():
    equal = Reducer("mean", draws=4)
    equal.add(torch.randn(5, 2), torch.full((5, 2), 0.3))
    np.testing.assert_allclose(estimate([equal]).sampling_degrees, 5 * 3, rtol=1e-12)
    rounds, _, variances = two_rounds("mean")
    parts = [((s / 5) ** 2 * v) for s, v in zip((2 / 8, 6 / 8), variances, strict=True)]
    own = [(part**2 / draws).sum(0) for part, draws in zip(parts, (1, 5), strict=True)]
    expected = sum(part.sum(0) for part in parts) ** 2 / sum(own)
    np.testing.assert_allclose(estimate(rounds).sampling_degrees, expected, rtol=1e-12)


def test_where_the_variances_are_not_known_the_sampling_error_is_not_either():
    rounds, _, _ = two_rounds("mean")
    found = estimate(rounds[:1], known=False)
    assert found.sampling_error is None
    assert found.sampling_degrees is None
    assert np.isnan(found.relative_error)


def test_one_sample_says_nothing_of_others():
    reducer = Reducer("mean")
    reducer.add(torch.ones(1, 2))
    assert estimate([reducer]).error is None


def test_nothing_drawn_is_a_sampling_error_of_0():
    reducer = Reducer("mean_plus_2_std")
    reducer.add(torch.randn(5, 2))
    found = estimate([reducer])
    assert found.sampling_error.tolist() == [0, 0]
    assert found.half_widths("sampling_error").tolist() == [0, 0]


def test_intervals_are_students_with_each_units_own_degrees():
    found = Estimate(
        np.zeros(3), sampling_error=np.array([1.0, 2.0, 1.0]), error=np.array([1.0, 3.0, 0.0]),
        sampling_degrees=np.array([1.0, 30.0, 0.2]), degrees=np.array(9.0),
    )  # fmt: skip
    table = [12.706, 2 * 2.0423, 12.706]  # t at 97.5 %, with at least one degree
    np.testing.assert_allclose(found.half_widths("sampling_error"), table, rtol=1e-4)
    np.testing.assert_allclose(found.half_widths(), np.array([1, 3, 0]) * 2.2622, rtol=1e-4)
    assert found.half_widths("sampling_error", level=0.5)[0] == pytest.approx(1)


@pytest.mark.parametrize("of", ["error", "sampling_error"])
def test_there_is_no_interval_where_no_error_is_known(of):
    with pytest.raises(ValueError, match=f"nothing is known of the scores' {of}$"):
        Estimate(np.zeros(2)).half_widths(of)


def test_the_relative_error_is_freed_of_what_the_noise_adds_to_the_scores():
    found = Estimate(np.array([3.0, 4.0]), sampling_error=np.array([0.0, 3.0]))
    assert found.relative_error == pytest.approx(3 / 4)  # sqrt(9 / (25 - 9))


def drawn(reduction, rounds, samples=200, units=2000, spread=1.0):
    """Truth, the raw scores, and the estimate of units that are all alike but for the draws."""
    random = np.random.default_rng(0)
    truth = np.repeat(random.normal(0, spread, size=(samples, 1)), units, 1)
    reducers, weighted = [], 0
    for draws in rounds:
        each = truth + random.normal(0, 1, (draws, samples, units))
        reducers.append(Reducer(reduction, draws))
        rows, variances = each.mean(0), each.var(0, ddof=1) / draws
        reducers[-1].add(torch.from_numpy(rows), torch.from_numpy(variances))
        weighted = weighted + draws * rows
    raw = AT_ONCE[reduction](weighted / sum(rounds))
    return AT_ONCE[reduction](truth)[0], raw, estimate(reducers)


@pytest.mark.parametrize("rounds", [[2], [3, 9]])
def test_mean_plus_2_std_does_not_count_the_spread_of_the_draws(rounds):
    truth, raw, found = drawn("mean_plus_2_std", rounds)
    bias = np.abs(found.scores.mean() - truth)
    assert bias < 0.02
    assert raw.mean() - truth > 5 * bias


@pytest.mark.parametrize("reduction", ["mean", "mean_plus_2_std"])
@pytest.mark.parametrize("rounds", [[2], [3, 9]])
def test_the_sampling_error_that_is_told_is_the_one_that_is_made(reduction, rounds):
    truth, _, found = drawn(reduction, rounds)
    made = np.sqrt(np.square(found.scores - truth).mean())
    assert np.sqrt(np.square(found.sampling_error).mean()) == pytest.approx(made, rel=0.1)


@pytest.mark.parametrize("reduction", ["mean", "mean_plus_2_std"])
def test_19_of_20_intervals_reach_to_the_truth(reduction):
    truth, _, found = drawn(reduction, [2], samples=20, units=4000)
    reached = np.abs(found.scores - truth) <= found.half_widths("sampling_error")
    assert 0.9 < reached.mean() < 0.98


@pytest.mark.parametrize(("spread", "least"), [(0, 0.8), (0.1, 0.9), (0.2, 0.9)])
def test_intervals_reach_to_the_truth_where_the_draws_hide_the_spread(spread, least):
    truth, _, found = drawn("mean_plus_2_std", [2], samples=100, spread=spread)
    reached = np.abs(found.scores - truth) <= found.half_widths("sampling_error")
    assert least < reached.mean() < 0.98
