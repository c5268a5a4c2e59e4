"""Sampled Shapley values against enumeration, the axioms, and rules for ending the sampling."""

import itertools
from argparse import Namespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pruning_lab.attributions import ShapleyAttributionMetric
from pruning_lab.attributions.base import Progress
from pruning_lab.attributions.criteria.shapley_exact import ExactShapleyAttributionMetric
from pruning_lab.attributions.estimation.stopping import is_separated
from pruning_lab.attributions.unit_groups import units_of_module


def network(units=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, units), nn.Tanh(), nn.Linear(units, 2)).double()


def batch(samples=7):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(samples, 3, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 2, (samples,), generator=generator)


def metric(model, **settings):
    return ShapleyAttributionMetric(model, [batch()], F.cross_entropy, "cpu", "none", **settings)


@torch.no_grad()
def enumerated(model, x, y):
    """Exact values: the weighted mean over all coalitions of what a unit adds to each."""
    activation = torch.tanh(model[0](x))
    units = activation.shape[1]

    def loss(coalition):
        mask = torch.zeros(units, dtype=torch.float64)
        mask[list(coalition)] = 1
        return F.cross_entropy(model[2](activation * mask), y, reduction="none")

    values = torch.zeros(len(x), units, dtype=torch.float64)
    for unit in range(units):
        others = [u for u in range(units) if u != unit]
        for size in range(units):
            coalitions = list(itertools.combinations(others, size))
            for without in coalitions:
                rise = loss(without) - loss((*without, unit))
                values[:, unit] += rise / (len(coalitions) * units)
    return values.numpy()


def test_all_orders_give_the_enumerated_values():
    model = network()
    orders = list(itertools.permutations(range(4)))
    found = metric(model).run(model[0], True, permutations=orders)
    np.testing.assert_allclose(found, enumerated(model, *batch()), atol=1e-12)


def test_the_error_shrinks_with_the_square_root_of_the_orders():
    model, exact = network(), enumerated(network(), *batch())
    errors = {
        orders: np.mean(
            [
                np.linalg.norm(
                    metric(model, sv_samples=orders, seed=seed).run(model[0], True) - exact
                )
                for seed in range(20)
            ]
        )
        for orders in (2, 32)
    }
    assert errors[32] == pytest.approx(errors[2] / 4, rel=0.25)


def test_a_unit_that_nobody_reads_is_worth_exactly_nothing():
    model = network()
    with torch.no_grad():
        model[2].weight[:, 1] = 0
    assert (metric(model, sv_samples=2).run(model[0], True)[:, 1] == 0).all()


def test_units_that_do_the_same_are_worth_the_same():
    model = network()
    with torch.no_grad():
        for parameter in (model[0].weight, model[0].bias):
            parameter[1] = parameter[0]
        model[2].weight[:, 1] = model[2].weight[:, 0]
    orders = list(itertools.permutations(range(4)))
    found = metric(model).run(model[0], True, permutations=orders)
    np.testing.assert_allclose(found[:, 0], found[:, 1], atol=1e-12)


def test_every_sample_has_orders_of_its_own_whatever_the_batch():
    played = Namespace(samples=3, players=10)
    orders = metric(network())._permutations(played, 0, pair=0)
    assert torch.equal(orders.sort(1).values, torch.arange(10).expand(3, 10))
    assert not torch.equal(orders[0], orders[1])
    assert not torch.equal(orders, metric(network())._permutations(played, 0, pair=1))
    alone = metric(network())._permutations(Namespace(samples=1, players=10), 2, pair=0)
    assert torch.equal(alone[0], orders[2])


def test_orders_come_in_antithetic_pairs():
    model = network()
    found = metric(model, sv_samples=3).run(model[0], True)
    np.testing.assert_array_equal(metric(model, sv_samples=4).run(model[0], True), found)
    played = Namespace(samples=7, players=4)
    expected = np.zeros_like(found)
    for pair in range(2):
        for sample, order in enumerate(metric(model)._permutations(played, 0, pair).numpy()):
            both = metric(model).run(model[0], True, permutations=[order, order[::-1]])
            expected[sample] += both[sample] / 2
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_samples_limits_what_is_read_to_the_first():
    model = network()
    whole, part = metric(model).run(model[0]), metric(model, samples=3).run(model[0])
    assert whole.shape == (7, 4)
    np.testing.assert_allclose(part, whole[:3], atol=1e-12)


@pytest.mark.parametrize("orders", [[[0, 1, 2, 2]], [[0, 1, 2]], [0, 1, 2, 3]])
def test_permutations_that_are_none_are_refused(orders):
    model = network()
    with pytest.raises(ValueError, match=r"permutations must have shape \(n, 4\)"):
        metric(model).run(model[0], permutations=orders)


@pytest.mark.parametrize("setting", [{"sv_samples": 0}, {"samples": 0}])
def test_an_impossible_budget_is_refused(setting):
    with pytest.raises(ValueError, match="=0 is not possible; it is a whole number from 1"):
        metric(network(), **setting)


SAMPLES, UNITS = 12, {0: 6, 2: 5}


def two_layers():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 4  # so that units depend on each other
    return model.double()


class Watched(Progress):
    """Keeps what it is told, and the rows whose losses are asked for."""

    def __init__(self):
        self.plan, self.made, self.errors, self.rows = [0, 0], [0, 0], [[], []], 0

    def planned(self, index, evaluations):
        self.plan[index] += evaluations

    def done(self, index, evaluations):
        self.made[index] += evaluations

    def error(self, index, relative):
        self.errors[index].append(relative)

    def loss(self, output, target, reduction):
        self.rows += len(output)
        return F.cross_entropy(output, target, reduction=reduction)


def ruled(batch_size=5, kind=ShapleyAttributionMetric, available=SAMPLES, **settings):
    """The estimates of both layers, and what was told of the work."""
    model, seen = two_layers(), Watched()
    data = DataLoader(TensorDataset(*batch(available)), batch_size)
    made = kind(model, data, seen.loss, "cpu", **settings)
    layers = [units_of_module(model[index]) for index in UNITS]
    return made.estimate(layers, True, seen), seen


def exact(available=SAMPLES):
    found, _ = ruled(available, ExactShapleyAttributionMetric, available)
    return [each.scores for each in found]


MANY = {"available": 1000, "samples": 16, "batch_size": 100, "sv_samples": 2}


def used(estimate):
    """Number of samples."""
    return int(estimate.degrees) + 1


def test_samples_double_until_scores_are_as_exact_as_relative_error_asks():
    found, seen = ruled(**MANY, relative_error=0.3)
    for index, (each, truth) in enumerate(zip(found, exact(1000), strict=True)):
        assert each.relative_error <= 0.3
        assert min(seen.errors[index][:-1]) > 0.3
        assert used(each) == 16 * 2 ** (len(seen.errors[index]) - 1) < 1000
        assert each.sampling_error is None  # one pair of orders a sample
        assert np.linalg.norm(each.scores - truth) < 2 * 0.3 * np.linalg.norm(truth)
    assert seen.made == [
        2 * units * used(each) for units, each in zip(UNITS.values(), found, strict=True)
    ]


@pytest.mark.parametrize("reduction", ["mean", "mean_abs", "mean_plus_2_std"])
def test_samples_of_several_rounds_are_worth_what_they_are_at_once(reduction):
    found, _ = ruled(**MANY, relative_error=0.3, reduction=reduction)
    orders = 4 if reduction == "mean_plus_2_std" else 2  # one pair does not tell of the spread
    for index, each in enumerate(found):
        same = MANY | {"samples": used(each), "sv_samples": orders}
        once = ruled(**same, reduction=reduction)
        assert_same(each, once[0][index])


def assert_same(found, expected):
    for name, value in vars(expected).items():
        if value is None:
            assert getattr(found, name) is None
        else:
            np.testing.assert_allclose(getattr(found, name), value, rtol=1e-9, atol=1e-12)


def test_the_players_with_the_lowest_scores_are_the_right_ones():
    share = 0.17  # one unit of each layer
    found, seen = ruled(**MANY, separated=share)
    for index, (each, truth) in enumerate(zip(found, exact(1000), strict=True)):
        lowest = round(share * len(truth))
        assert is_separated(each, share, len(seen.errors[index]))
        assert 64 <= used(each) < 1000
        assert set(np.argsort(each.scores)[:lowest]) == set(np.argsort(truth)[:lowest])


@pytest.mark.parametrize(
    "rule", [{"relative_error": 0.3}, {"separated": 0.8}, {"evaluations": 3000}], ids=str
)
def test_rules_end_at_the_same_numbers_whatever_the_batch(rule):
    few = MANY | {"available": 130}
    whole, seen = ruled(**few | {"batch_size": 130}, **rule)
    for batch_size in (7, 50):
        found, others = ruled(**few | {"batch_size": batch_size}, **rule)
        assert others.made == seen.made
        for each, expected in zip(found, whole, strict=True):
            assert_same(each, expected)


@pytest.mark.parametrize("evaluations", [800, 1000, 1777, 3000, 20000])
def test_a_budget_of_evaluations_is_spent_and_not_exceeded(evaluations):
    for settings in ({}, {"samples": 6}, MANY):
        _, seen = ruled(**settings, evaluations=evaluations)
        pair = 2 * SAMPLES * sum(UNITS.values())
        looks = 40 * sum(map(len, seen.errors))  # every round looks at how the model runs
        assert seen.rows - looks <= sum(seen.made) <= evaluations
        assert sum(seen.made) > evaluations - 2 * pair  # what is left pays for no round of all


def test_a_budget_that_does_not_do_for_the_first_round_is_refused():
    message = (
        "evaluations=527 are too few: the first round, 12 samples with 4 permutations each, "
        "takes 528. Allow more evaluations, or lower samples or sv_samples."
    )
    with pytest.raises(ValueError, match=message):
        ruled(evaluations=527, sv_samples=4)
    assert sum(ruled(evaluations=528, sv_samples=4)[1].made) == 528


def test_the_rule_that_is_reached_first_ends_the_sampling():
    _, exact_enough = ruled(**MANY, relative_error=0.3)
    half, twice = sum(exact_enough.made) // 2, sum(exact_enough.made) * 100
    _, sooner = ruled(**MANY, relative_error=0.3, evaluations=half)
    _, later = ruled(**MANY, relative_error=0.3, evaluations=twice)
    assert sum(sooner.made) <= half
    assert later.made == exact_enough.made


def test_when_all_samples_are_used_rounds_of_orders_are_worth_what_they_are_at_once():
    found, seen = ruled(samples=4, evaluations=5000, sv_samples=2)
    for index, (each, units) in enumerate(zip(found, UNITS.values(), strict=True)):
        orders = seen.made[index] // (units * SAMPLES)
        assert orders > 6
        assert_same(each, ruled(sv_samples=orders)[0][index])


def test_an_error_that_only_more_samples_would_lower_ends_the_sampling(caplog):
    found, seen = ruled(relative_error=0.05)
    assert all(used(each) == SAMPLES for each in found)
    assert max(seen.made) <= 4 * 2 * max(UNITS.values()) * SAMPLES  # few rounds of orders tell
    assert "2 of 2 layers miss relative_error=0.05 with all score samples: the" in caplog.text
    assert (
        "comes from which samples were chosen. The run continues with these scores." in caplog.text
    )


def test_rules_need_samples_that_tell_their_error():
    with pytest.raises(ValueError, match=r"There are 12 samples .* need 64 or more to estimate"):
        ruled(separated=0.5)
    with pytest.raises(ValueError, match=r"There are 1 samples .* need 2 or more to estimate"):
        ruled(available=1, relative_error=0.5)
    with pytest.raises(ValueError, match="samples=1 is too few to estimate the total error"):
        ruled(samples=1, relative_error=0.5)


def test_work_that_is_planned_is_done_and_every_round_tells_of_its_error():
    found, seen = ruled(**MANY, relative_error=0.3)
    assert seen.plan == seen.made
    assert [told[-1] for told in seen.errors] == [each.relative_error for each in found]


def test_without_rules_the_orders_are_those_asked_for():
    _, seen = ruled(sv_samples=3)
    assert seen.plan == seen.made == [4 * units * SAMPLES for units in UNITS.values()]


def test_a_limit_of_samples_is_planned_with():
    _, seen = ruled(sv_samples=4, samples=7)
    assert seen.plan == seen.made == [4 * units * 7 for units in UNITS.values()]


def test_the_sampling_error_is_that_of_orders_drawn_anew():
    runs = [ruled(sv_samples=8, seed=seed)[0][0] for seed in range(40)]
    truth, _ = exact()
    made = np.sqrt(np.square([each.scores - truth for each in runs]).mean(0))
    told = np.sqrt(np.square([each.sampling_error for each in runs]).mean(0))
    np.testing.assert_allclose(told, made, rtol=0.35)


def test_of_one_pair_of_orders_no_error_is_known():
    (found, _), _ = ruled(sv_samples=2)
    assert found.sampling_error is None
    assert found.error is not None


@pytest.mark.parametrize("rule", ["relative_error", "separated", "evaluations", "seconds"])
def test_rules_need_errors_and_something_to_draw(rule):
    setting = {rule: 0.5 if rule != "evaluations" else 500}
    with pytest.raises(ValueError, match=r"With reduction=none the errors .*one of mean, sum"):
        metric(network(), **setting)
    with pytest.raises(ValueError, match="With reduction=none the errors of the scores"):
        metric(network()).run(network()[0], **setting)
    with pytest.raises(ValueError, match="Given permutations, nothing is sampled: omit relative"):
        metric(network(), permutations=[[0, 1, 2, 3]], **setting)


def test_seconds_end_the_sampling_and_say_that_it_cannot_be_repeated(caplog):
    _, seen = ruled(seconds=1e-9)
    assert seen.made == [2 * 3 * units * SAMPLES for units in UNITS.values()]  # sv_samples=5
    assert "Sampling ends after 1e-09 s: it cannot be repeated exactly." in caplog.text
