"""Who gets how many more draws: by hand, and against all ways to spend a small budget."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import t as student

from pruning_lab.attributions.reduction import Estimate
from pruning_lab.attributions.stopping import (
    GROWTH,
    LEAST,
    Sampled,
    Stopping,
    _affordable,
    is_separated,
    more_pairs,
)
from pruning_lab.errors import UserError


def layer(relative=0.2, pairs=4, evaluations=1.0, seconds=1.0, apart=10.0):
    """Two units with this relative error; they are separated when they are this far ``apart``."""
    scores = np.array([1.0, 1 + apart])
    noise = relative**2 / (1 + relative**2) * np.square(scores).sum()
    errors = np.full(2, math.sqrt(noise / 2))
    estimate = Estimate(scores, errors, sampling_degrees=np.full(2, 100.0))
    return Sampled(estimate, pairs, evaluations, seconds)


@pytest.mark.parametrize("value", [0, 1, -0.1, 1.5, True, "0.1", float("nan")])
@pytest.mark.parametrize("rule", ["relative_error", "separated"])
def test_shares_lie_between_0_and_1(rule, value):
    message = rf"{rule}={value} is not possible; it is a number between 0 and 1 \(both excluded\)"
    with pytest.raises(UserError, match=message):
        Stopping(**{rule: value})


@pytest.mark.parametrize("value", [0, -3, 1.5, True, "9"])
def test_evaluations_are_a_whole_number(value):
    message = f"evaluations={value} is not possible; it is a whole number from 1 on"
    with pytest.raises(UserError, match=message):
        Stopping(evaluations=value)


@pytest.mark.parametrize("value", [0, -1.0, float("inf"), "1"])
def test_seconds_are_above_0(value):
    with pytest.raises(UserError, match=f"seconds={value} is not possible; it is a number above 0"):
        Stopping(seconds=value)


def test_there_are_rules_when_one_of_them_is_given():
    assert not Stopping().any
    for rule in ("relative_error", "separated", "evaluations", "seconds"):
        assert Stopping(**{rule: 0.5 if rule != "evaluations" else 1}).any


def test_the_layer_made_here_has_the_relative_error_it_says():
    assert layer(0.2).estimate.relative_error == pytest.approx(0.2)


def test_a_layer_that_is_exact_enough_gets_no_more():
    assert more_pairs([layer(0.1), layer(0.3)], Stopping(relative_error=0.31)) == [0, 0]


def test_the_pairs_in_all_go_with_the_square_of_the_error():
    rules = Stopping(relative_error=0.1)
    assert more_pairs([layer(0.1 * math.sqrt(2.3), pairs=4)], rules) == [10 - 4]  # 9.2 would do
    assert more_pairs([layer(0.1 * math.sqrt(2.31), pairs=40)], rules) == [93 - 40]


def test_a_round_multiplies_the_pairs_by_no_more_than_growth():
    assert GROWTH == 8
    assert more_pairs([layer(0.9, pairs=4)], Stopping(relative_error=0.01)) == [7 * 4]


def test_a_round_brings_at_least_as_many_pairs_as_tell_of_the_error():
    assert more_pairs([layer(0.1001, pairs=40)], Stopping(relative_error=0.1)) == [LEAST]


def test_the_pairs_double_until_scores_are_separated():
    far, near = layer(pairs=5, apart=100), layer(pairs=5, apart=0.01)
    assert more_pairs([far, near], Stopping(separated=0.5)) == [0, 5]


def test_of_two_rules_for_a_layer_the_one_that_is_reached_first_rules():
    rules = Stopping(relative_error=0.1, separated=0.5)
    exact, apart = layer(0.05, apart=0.01), layer(0.16, apart=100)
    assert more_pairs([exact], Stopping(separated=0.5)) == [4]
    assert more_pairs([apart], Stopping(relative_error=0.1)) == [11 - 4]
    assert more_pairs([exact, apart], rules) == [0, 0]
    neither = layer(0.3, apart=0.01)  # 36 pairs for the error, 8 for another look
    assert more_pairs([neither], rules) == [8 - 4]


def test_what_a_rule_does_not_want_is_not_bought():
    rules = Stopping(relative_error=0.1, evaluations=10**6)
    assert more_pairs([layer(0.05), layer(0.1 * math.sqrt(2.3))], rules) == [0, 6]


def test_without_other_rules_a_round_is_as_large_as_the_budget_and_growth_allow():
    (more,) = more_pairs([layer(pairs=4)], Stopping(evaluations=10**6))
    assert more == 7 * 4
    assert more_pairs([layer(pairs=4)], Stopping(evaluations=20)) == [16]


@pytest.mark.parametrize("left", [0, -7, 1.9])
def test_where_nothing_is_left_that_pays_for_a_round_all_end(left):
    spent = 3 * 4.0
    rules = Stopping(seconds=spent + left)
    assert more_pairs([layer(pairs=4, seconds=3.0)], rules) == [0]


def test_equal_layers_share_a_budget_equally():
    assert more_pairs([layer(), layer()], Stopping(evaluations=8 + 12)) == [6, 6]


def test_pairs_go_with_the_error_and_against_the_root_of_the_price():
    twice = [layer(0.4), layer(0.2)]
    assert more_pairs(twice, Stopping(seconds=8 + 22.5)) == [20 - 4, 10 - 4]
    dear = [layer(seconds=1.0), layer(seconds=4.0)]
    assert more_pairs(dear, Stopping(seconds=20 + 40.5)) == [20 - 4, 10 - 4]


def test_a_layer_without_error_leaves_the_budget_to_others():
    assert more_pairs([layer(0.0), layer()], Stopping(evaluations=8 + 12)) == [0, 12]


@pytest.mark.parametrize("unit", ["evaluations", "seconds"])
def test_a_budget_is_never_exceeded(unit):
    random = np.random.default_rng(0)
    for _ in range(200):
        layers = [
            layer(random.uniform(0, 2), int(random.integers(2, 9)), **{unit: random.uniform(1, 20)})
            for _ in range(random.integers(1, 6))
        ]
        spent = sum(getattr(each, unit) * each.pairs for each in layers)
        limit = int(spent + random.integers(1, 500))
        more = more_pairs(layers, Stopping(**{unit: limit}))
        assert spent + sum(
            getattr(each, unit) * pairs for each, pairs in zip(layers, more, strict=True)
        ) <= max(limit, spent)
        assert all(pairs == 0 or pairs >= LEAST for pairs in more)


def test_both_budgets_hold_where_there_are_two():
    cheap, quick = layer(evaluations=1, seconds=5), layer(evaluations=5, seconds=1)
    rules = Stopping(evaluations=24 + 30, seconds=24 + 20)
    more = more_pairs([cheap, quick], rules)
    assert sum(more) > 0
    assert more[0] + 5 * more[1] <= 30
    assert 5 * more[0] + more[1] <= 20


def squared(layers, totals):
    """The sum of the squared relative errors after so many pairs."""
    return sum(
        each.estimate.relative_error**2 * each.pairs / total
        for each, total in zip(layers, totals, strict=True)
    )


def cheapest(layers, wanted, prices, left):
    """The best of all ways to spend what is left, and its totals."""
    ways = itertools.product(
        *(range(each.pairs, most + 1) for each, most in zip(layers, wanted, strict=True))
    )
    bought = (
        totals
        for totals in ways
        if sum(
            price * (total - each.pairs)
            for price, total, each in zip(prices, totals, layers, strict=True)
        )
        <= left
    )
    return min((squared(layers, totals), totals) for totals in bought)


@pytest.mark.parametrize("left", [9, 20, 41, 77])
@pytest.mark.parametrize("errors", [(0.4, 0.1, 0.2), (0.1, 0.1, 0.1), (0.05, 0.9, 0.3)])
def test_a_budget_goes_where_the_squared_errors_fall_most(errors, left):
    layers = [
        layer(error, pairs, evaluations=price)
        for error, pairs, price in zip(errors, (2, 4, 3), (3.0, 1.0, 2.0), strict=True)
    ]
    prices, wanted = [3.0, 1.0, 2.0], [16, 20, 15]
    found = _affordable(layers, wanted, prices, left)
    best, _ = cheapest(layers, wanted, prices, left)
    less, _ = cheapest(layers, wanted, prices, left - sum(prices))  # rounding down loses no more
    assert best <= squared(layers, found) <= less


def test_is_separated_compares_all_pairs_of_intervals():
    random, seen = np.random.default_rng(1), []
    for _ in range(300):
        units, share = int(random.integers(2, 9)), random.uniform(0.05, 0.95)
        scores, errors = random.normal(size=units), random.uniform(0, 0.1, units)
        degrees = random.uniform(1, 20, units)
        half = errors * student.ppf(0.975, degrees)
        lowest = sorted(range(units), key=lambda unit: scores[unit])[: round(share * units)]
        others = [unit for unit in range(units) if unit not in lowest]
        expected = all(
            scores[low] + half[low] <= scores[high] - half[high]
            for low in lowest
            for high in others
        )
        estimate = Estimate(scores, errors, sampling_degrees=degrees)
        assert is_separated(estimate, share) == expected
        seen.append(expected and bool(lowest) and bool(others))
    assert 50 < sum(seen) < 250


def test_scores_without_error_are_separated():
    exact = Estimate(np.array([2.0, 1.0]), np.zeros(2), sampling_degrees=np.zeros(2))
    assert is_separated(exact, 0.5)


def test_a_share_of_no_player_or_of_all_is_separated():
    vague = Estimate(np.array([1.0, 2.0]), np.full(2, 9.0), sampling_degrees=np.ones(2))
    assert is_separated(vague, 0.01)
    assert not is_separated(vague, 0.5)
    assert is_separated(vague, 0.99)


def drowned(noise):
    """A layer whose scores are smaller than their error: how much smaller cannot be told."""
    vague = Estimate(np.array([0.1, 0.1]), np.full(2, noise), sampling_degrees=np.ones(2))
    return Sampled(vague, 2, 1.0, 1.0)


def test_a_layer_that_drowns_in_noise_grows_as_far_as_a_round_may():
    assert more_pairs([drowned(0.5)], Stopping(relative_error=0.05)) == [7 * 2]


@pytest.mark.parametrize("noise", [0.5, 5.0])
def test_a_layer_that_drowns_in_noise_leaves_no_budget_unspent(noise):
    more = more_pairs([drowned(noise), layer(pairs=2)], Stopping(evaluations=4 + 10))
    assert sum(more) >= 10 - 2
