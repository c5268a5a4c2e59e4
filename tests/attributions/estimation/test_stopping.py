"""Who gets how much more, and when a layer has enough: by hand, and against all ways to spend."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import t as student

from benchmarks.intervals import DISTRIBUTIONS, wrong
from pruning_lab.attributions.estimation.reduction import Estimate
from pruning_lab.attributions.estimation.stopping import (
    ENOUGH,
    MOST,
    Sampled,
    Stopping,
    _affordable,
    growth,
    is_separated,
    missed,
)
from pruning_lab.errors import UserError


def layer(relative=0.2, size=100, most=10**6, evaluations=1.0, seconds=1.0, apart=10.0, **state):
    """Two units with this relative error; they are separated when they are this far ``apart``.

    ``draws`` of the squared error are due to the draws; None: unknown.
    """
    draws = state.pop("draws", 0.0)
    scores = np.array([1.0, 1 + apart])
    noise = relative**2 / (1 + relative**2) * np.square(scores).sum()
    error = np.full(2, math.sqrt(noise / 2))
    sampling_error = None if draws is None else error * math.sqrt(draws)
    estimate = Estimate(scores, sampling_error, error, degrees=np.array(99.0))
    return Sampled(
        estimate, state.get("rounds", 1), state.get("all_samples", False), size, most,
        evaluations, seconds,
    )  # fmt: skip


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
    assert growth([layer(0.1), layer(0.3)], Stopping(relative_error=0.31)) == [0, 0]
    assert growth([layer(0.1), layer(0.32)], Stopping(relative_error=0.31)) == [0, 100]


def test_a_round_doubles_the_size_up_to_the_most():
    rules = Stopping(relative_error=0.01)
    assert growth([layer(0.9, size=16)], rules) == [16]
    assert growth([layer(0.9, size=16, most=20)], rules) == [4]
    assert growth([layer(0.9, size=20, most=20)], rules) == [0]


def test_fewer_than_16_samples_are_judged_only_when_there_are_no_more():
    few = [replace(layer(0.1).estimate, degrees=np.array(count - 1.0)) for count in (15, 16)]
    short, enough = (replace(layer(), estimate=each) for each in few)
    rules = Stopping(relative_error=0.2)
    assert growth([short, enough, replace(short, all_samples=True)], rules) == [100, 0, 0]


def test_the_size_doubles_until_scores_are_separated():
    far, near = layer(apart=100), layer(apart=0.01)
    assert growth([far, near], Stopping(separated=0.5)) == [0, 100]


def test_of_two_rules_for_a_layer_the_one_that_is_reached_first_rules():
    rules = Stopping(relative_error=0.1, separated=0.5)
    exact, apart = layer(0.05, apart=0.01), layer(0.16, apart=100)
    assert growth([exact], Stopping(separated=0.5)) == [100]
    assert growth([apart], Stopping(relative_error=0.1)) == [100]
    assert growth([exact, apart], rules) == [0, 0]
    assert growth([layer(0.3, apart=0.01)], rules) == [100]


@pytest.mark.parametrize("draws", [None, 0.8])
def test_when_all_samples_are_used_draws_are_bought_where_they_can_do(draws):
    rules = Stopping(relative_error=0.1)
    own = {"size": 1, "most": MOST, "all_samples": True}
    assert growth([layer(0.2, draws=draws, **own)], rules) == [1]  # 0.2 * sqrt(1 - 0.8) is 0.09
    assert growth([layer(0.2, draws=0.7, **own)], rules) == [0]  # 0.2 * sqrt(1 - 0.7) is 0.11
    assert growth([layer(0.2, draws=0.7)], rules) == [100]  # more samples always can
    assert growth([layer(0.2, draws=0.1, **own)], Stopping(evaluations=100)) == [1]


def test_a_separation_that_the_choice_of_samples_forbids_buys_no_draws():
    own = {"relative": 0.5, "apart": 1.0, "size": 4, "most": MOST, "all_samples": True}
    assert growth([layer(draws=0.9999, **own)], Stopping(separated=0.5)) == [4]
    assert growth([layer(draws=0.5, **own)], Stopping(separated=0.5)) == [0]


def test_what_remains_of_the_error_is_told_when_all_samples_are_used():
    rules = Stopping(relative_error=0.1)
    layers = [layer(0.05, all_samples=True), layer(0.3, draws=0.75, all_samples=True), layer(0.4)]
    message = missed(layers, rules)  # scores of l2 norm 11.05 with errors of 3.17, and half of it
    assert message.startswith("1 of 3 layers miss relative_error=0.1 with all score samples: the ")
    assert (
        "largest relative error is 0.3, of which 0.145 comes from which samples were chosen"
        in message
    )
    assert "Relax the rule, or give more samples to score on (dataset.score;" in message
    (unknown,) = [missed([layer(0.3, draws=None, all_samples=True)], rules)]
    assert "comes from" not in unknown
    both = missed(layers[1:2], Stopping(relative_error=0.1, separated=0.99))
    assert both is None  # no unit is left to separate
    assert missed(layers, Stopping(evaluations=10)) is None
    assert missed([layer(0.05, all_samples=True), layer(0.4)], rules) is None


def test_what_a_rule_does_not_want_is_not_bought():
    rules = Stopping(relative_error=0.1, evaluations=10**6)
    assert growth([layer(0.05), layer(0.15)], rules) == [0, 100]


def test_without_other_rules_a_round_doubles_as_far_as_the_budget_allows():
    assert growth([layer(size=4)], Stopping(evaluations=10**6)) == [4]
    assert growth([layer(size=4)], Stopping(evaluations=7)) == [3]


@pytest.mark.parametrize("left", [0, -7, 2.9])
def test_where_nothing_is_left_that_pays_for_a_round_all_end(left):
    rules = Stopping(seconds=3 * 4.0 + left)
    assert growth([layer(size=4, seconds=3.0)], rules) == [0]


def test_equal_layers_share_a_budget_equally():
    assert growth([layer(), layer()], Stopping(evaluations=200 + 12)) == [6, 6]


def test_sizes_go_with_the_error_and_against_the_root_of_the_price():
    twice = [layer(0.4, size=10), layer(0.2, size=10)]
    assert growth(twice, Stopping(seconds=20 + 6)) == [6, 0]
    assert growth(twice, Stopping(seconds=20 + 10)) == [10, 0]  # 20 and 10 in all
    dear = [layer(size=10, seconds=1.0), layer(size=10, seconds=4.0)]
    assert growth(dear, Stopping(seconds=50 + 10)) == [10, 0]


def test_a_layer_with_all_samples_counts_with_what_its_draws_can_lower():
    own = {"size": 10, "most": MOST}
    both = [layer(0.2, draws=0.04, all_samples=True, **own), layer(0.2, **own)]
    assert growth(both, Stopping(evaluations=20 + 8)) == [0, 8]


def test_a_layer_without_error_leaves_the_budget_to_others():
    assert growth([layer(0.0), layer()], Stopping(evaluations=200 + 12)) == [0, 12]


@pytest.mark.parametrize("unit", ["evaluations", "seconds"])
def test_a_budget_is_never_exceeded(unit):
    random = np.random.default_rng(0)
    for _ in range(200):
        layers = [
            layer(random.uniform(0, 2), int(random.integers(2, 9)), **{unit: random.uniform(1, 20)})
            for _ in range(random.integers(1, 6))
        ]
        spent = sum(getattr(each, unit) * each.size for each in layers)
        limit = int(spent + random.integers(1, 500))
        bought = growth(layers, Stopping(**{unit: limit}))
        assert spent + sum(
            getattr(each, unit) * size for each, size in zip(layers, bought, strict=True)
        ) <= max(limit, spent)


def test_both_budgets_hold_where_there_are_two():
    cheap, quick = layer(size=9, seconds=5), layer(size=9, evaluations=5)
    bought = growth([cheap, quick], Stopping(evaluations=54 + 30, seconds=54 + 20))
    assert sum(bought) > 0
    assert bought[0] + 5 * bought[1] <= 30
    assert 5 * bought[0] + bought[1] <= 20


def squared(layers, totals):
    """The sum of the squared relative errors at these sizes."""
    return sum(
        each.estimate.relative_error**2 * each.size / total
        for each, total in zip(layers, totals, strict=True)
    )


def cheapest(layers, wanted, prices, left):
    """The best of all ways to spend what is left, and its sizes."""
    ways = itertools.product(
        *(range(each.size, most + 1) for each, most in zip(layers, wanted, strict=True))
    )
    bought = (
        totals
        for totals in ways
        if sum(
            price * (total - each.size)
            for price, total, each in zip(prices, totals, layers, strict=True)
        )
        <= left
    )
    return min((squared(layers, totals), totals) for totals in bought)


@pytest.mark.parametrize("left", [9, 20, 41, 77])
@pytest.mark.parametrize("errors", [(0.4, 0.1, 0.2), (0.1, 0.1, 0.1), (0.05, 0.9, 0.3)])
def test_a_budget_goes_where_the_squared_errors_fall_most(errors, left):
    layers = [
        layer(error, size, evaluations=price)
        for error, size, price in zip(errors, (2, 4, 3), (3.0, 1.0, 2.0), strict=True)
    ]
    prices, wanted = [3.0, 1.0, 2.0], [16, 20, 15]
    found = _affordable(layers, wanted, prices, left)
    best, _ = cheapest(layers, wanted, prices, left)
    less, _ = cheapest(layers, wanted, prices, left - sum(prices))  # rounding down loses no more
    assert best <= squared(layers, found) <= less


def test_a_layer_that_drowns_in_noise_leaves_no_budget_unspent():
    vague = Estimate(np.full(2, 0.1), None, np.full(2, 5.0), degrees=np.array(9.0))
    drowned = Sampled(vague, 1, False, 20, 100, 1.0, 1.0)
    assert sum(growth([drowned, layer(size=20)], Stopping(evaluations=40 + 10))) >= 10 - 2


def test_is_separated_compares_all_pairs_of_intervals():
    random, seen = np.random.default_rng(1), []
    for _ in range(300):
        units, share = int(random.integers(2, 9)), random.uniform(0.05, 0.95)
        rounds, degrees = int(random.integers(1, 5)), int(random.integers(63, 200))
        scores, errors = random.normal(size=units), random.uniform(0, 0.07, units)
        level = 1 - 0.05 / (units * rounds * (rounds + 1))
        half = errors * student.ppf((1 + level) / 2, degrees)
        lowest = sorted(range(units), key=lambda unit: scores[unit])[: round(share * units)]
        others = [unit for unit in range(units) if unit not in lowest]
        expected = all(
            scores[low] + half[low] <= scores[high] - half[high]
            for low in lowest
            for high in others
        )
        estimate = Estimate(scores, error=errors, degrees=np.array(float(degrees)))
        assert is_separated(estimate, share, rounds) == expected
        seen.append(expected and bool(lowest) and bool(others))
    assert 50 < sum(seen) < 250


def test_scores_without_error_are_separated_from_64_samples_on():
    for samples in (ENOUGH - 1, ENOUGH):
        degrees = np.array(samples - 1.0)
        exact = Estimate(np.array([2.0, 1.0]), error=np.zeros(2), degrees=degrees)
        assert is_separated(exact, 0.5) == (samples == 64)


def test_a_share_of_no_player_or_of_all_is_separated():
    vague = Estimate(np.array([1.0, 2.0]), error=np.full(2, 9.0), degrees=np.array(99.0))
    assert is_separated(vague, 0.01)
    assert not is_separated(vague, 0.5)
    assert is_separated(vague, 0.99)


def test_the_confidence_spent_on_any_number_of_rounds_sums_to_one():
    assert sum(1 / (rounds * (rounds + 1)) for rounds in range(1, 10**5)) == pytest.approx(1, 1e-4)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_separated_is_wrong_in_at_most_5_percent_whatever_the_tails(name):
    bad, _ = wrong(name, repetitions=1000, most=512)
    assert bad <= 0.05
