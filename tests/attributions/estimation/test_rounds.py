"""Scores from several rounds are those of all their draws at once."""

import numpy as np
import pytest
import torch

from pruning_lab.attributions.estimation.reduction import REDUCTIONS, Drawn


def draws(count, samples=7, units=3, seed=0):
    """(draws, samples, units)"""
    return np.random.default_rng(seed).exponential(size=(count, samples, units)) - 1


def one_round(values, batch=3):
    """Per-sample draws as a round that arrives in batches."""
    count = len(values)
    mean = torch.from_numpy(values.mean(0))
    variance = torch.from_numpy(values.var(0)) / max(1, count - 1)
    parts = zip(mean.split(batch), variance.split(batch), strict=True)
    return Drawn.of(((*part, len(part[0])) for part in parts), count)


def assert_same(found, expected):
    assert found.draws == expected.draws
    torch.testing.assert_close(found.scores, expected.scores)
    torch.testing.assert_close(found.squares, expected.squares)


def test_a_round_holds_means_and_squared_deviations():
    values = draws(4)
    found = one_round(values)
    np.testing.assert_allclose(found.scores, values.mean(0))
    np.testing.assert_allclose(found.squares, 4 * values.var(0))


@pytest.mark.parametrize("sizes", [(1, 1), (1, 3), (4, 2), (1, 1, 2, 4)])
def test_more_draws_are_as_if_drawn_at_once(sizes):
    values = draws(sum(sizes))
    rounds = [one_round(part) for part in np.split(values, np.cumsum(sizes)[:-1])]
    found = rounds[0]
    for each in rounds[1:]:
        found = found.with_draws(each)
    assert_same(found, one_round(values))


def test_more_samples_are_as_if_drawn_at_once():
    values = draws(2)
    found = one_round(values[:, :4]).with_samples(one_round(values[:, 4:]))
    assert_same(found, one_round(values))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_error_of_one_draw_is_unknown_and_that_of_two_rounds_of_one_is_known(reduction):
    first, second = (one_round(draws(1, seed=seed)) for seed in (0, 1))
    alone, both = first.estimate(reduction), first.with_draws(second).estimate(reduction)
    assert alone.sampling_error is None
    assert (alone.error > 0).all()
    assert (both.sampling_error > 0).all()


def test_the_error_of_a_mean_by_hand():
    values = draws(3) + 5 * np.arange(7)[:, None]  # samples differ more than their draws
    found = one_round(values).estimate("mean")
    np.testing.assert_allclose(found.scores, values.mean((0, 1)))
    np.testing.assert_allclose(found.error, values.mean(0).std(0, ddof=1) / np.sqrt(7))
    of_samples = values.var(0, ddof=1) / 3
    np.testing.assert_allclose(found.sampling_error, np.sqrt(of_samples.sum(0)) / 7)
