"""A layer whose units are worth what is written down: every verdict by hand."""

import numpy as np
import pytest
from torch import nn

from pruning_lab.attributions.players import units_of_module
from pruning_lab.errors import UserError
from pruning_lab.ledger import Cost
from pruning_lab.truth import LayerTruth, Settings, by_layer, judge, overall
from pruning_lab.truth.removals import Removals

WORTH = np.array([1.0, 2.0, 4.0, 8.0])


class Additive(Removals):
    """The loss rises by the worth of all that is gone, times the number of the sample."""

    def __init__(self, samples=3):
        self.factors = np.arange(1, samples + 1)[:, None]

    def rises(self, players, removed):
        return [self.factors * (each @ WORTH) for each in removed]


SCORES = {
    "right": WORTH,
    "wrong": -WORTH,
    "shapley": np.array([1.0, 2.0, 8.0, 4.0]),  # the last two the other way round
}


@pytest.fixture(scope="module")
def truth():
    layer, settings = nn.Linear(2, 4), Settings(points=4, draws=500, sizes=(1, 2), greedy=2)
    return judge("fc", units_of_module(layer), SCORES, Additive(), Additive(2), settings)


def test_curves_and_their_means(truth):
    # lowest first 1, 3, 7, 15, on average 6.5; highest first 8, 12, 14, 15: 12.25
    np.testing.assert_allclose(truth.forward["right"], [6.5, 13, 19.5])
    np.testing.assert_allclose(truth.reverse["right"], [12.25, 24.5, 36.75])
    np.testing.assert_allclose(truth.forward["wrong"], truth.reverse["right"])
    np.testing.assert_allclose(truth.curves["right"], 2 * np.array([1, 3, 7, 15]))
    assert truth.counts.tolist() == [1, 2, 3, 4]


def test_chance_is_the_mean_of_random_orders(truth):
    # after t of 4 removals 15 t / 4 on average: 9.375
    assert truth.chance.shape == (500, 3)
    np.testing.assert_allclose(truth.chance.mean(0), 9.375 * np.array([1, 2, 3]), rtol=0.05)


def test_the_greedy_oracle_takes_the_least_first(truth):
    assert truth.greedy == [0, 1]


def test_verdicts_layer_by_layer(truth):
    table = by_layer([truth]).set_index("criterion")
    assert table.loc["right", "rise"] == pytest.approx(13)
    # Student's t for 3 samples is 4.303; their deviation 6.5, over the root of 3
    assert table.loc["right", "rise_half"] == pytest.approx(4.303 * 6.5 / 3**0.5, rel=1e-3)
    assert table.loc["right", "harm"] == pytest.approx(6.5 / 9.375, rel=0.05)
    low, high = table.loc["right", ["harm_low", "harm_high"]]
    assert high - low < 0.05 * high  # of the 500 orders alone: the samples are all alike
    for size in (1, 2):  # the best set there is, and the worst
        assert table.loc["right", f"oracle_{size}"] == 0
        assert table.loc["wrong", f"oracle_{size}"] == 1
    assert table.loc[["right", "wrong"], "leave_one_out"].tolist() == pytest.approx([1, -1])
    assert table.loc["shapley", "leave_one_out"] == pytest.approx(0.8)  # 1 - 6 * 2 / (4 * 15)
    assert table.loc[["right", "wrong"], "shapley"].tolist() == pytest.approx([0.8, -0.8])
    assert np.isnan(table.loc["shapley", "shapley"])
    assert table["greedy"].tolist() == [1, -1, 1]  # of 4 units 2, by chance 1


def test_sizes_with_too_many_sets_are_left_out():
    settings = Settings(points=4, draws=2, sizes=(1, 2, 4), sets=5, greedy=1)
    players = units_of_module(nn.Linear(2, 4))
    found = judge("fc", players, SCORES, Additive(), Additive(), settings)
    assert list(found.sets) == [1]  # of 2 there are 6, of 4 nothing is left


def test_over_all_layers(truth):
    other = LayerTruth("conv", 4, {"right": WORTH}, np.array([[10.0, 30, 20], [30, 10, 20]]))
    other.forward["right"], other.reverse["right"] = np.array([2.0, 4.0, 6.0]), np.ones(3)
    both = [truth, other]
    table = overall(both, by_layer(both), {"right": Cost(forward=3, backward=5, seconds=7)})
    assert table["criterion"].tolist() == ["right", "shapley", "wrong"]
    row = table.set_index("criterion").loc["right"]
    harm = (6.5 * 2 + 4) / (truth.chance.mean() + 20)
    assert row["harm"] == pytest.approx(harm)
    assert row["harm_low"] < harm < row["harm_high"]
    assert row[["layers", "forward", "backward", "seconds"]].tolist() == [2, 3, 5, 7]
    assert row["oracle_1"] == 0


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"points": 0}, r"truth\.points=0"),
        ({"greedy": 1.5}, r"truth\.greedy=1\.5"),
        ({"draws": 1}, r"truth\.draws=1"),
        ({"sizes": 3}, r"truth\.sizes=3 is not possible; it is a list"),
        ({"sizes": (2, 0)}, r"truth\.sizes=0"),
    ],
)
def test_settings_are_refused(settings, why):
    with pytest.raises(UserError, match=why):
        Settings(**settings)


def random_truth(stream, own=5.0, draws=16):
    """60 samples with a mean rise of ``own``, beside orders with one of 10."""
    orders = stream.normal(10, 2, (draws, 1))
    found = LayerTruth("fc", 4, {"right": WORTH}, orders + stream.normal(0, 8, (draws, 60)))
    found.forward["right"] = own + found.chance.mean(0) - 10 + stream.exponential(2, 60) - 2
    found.reverse["right"] = found.forward["right"]
    return found


def test_an_interval_holds_the_share_of_chance_as_often_as_it_says():
    """By drawing samples and random orders 300 times, which both vary."""
    stream, held = np.random.default_rng(0), []
    for _ in range(300):
        row = by_layer([random_truth(stream)]).iloc[0]
        held.append(row["harm_low"] <= 0.5 <= row["harm_high"])
    assert 0.9 <= np.mean(held) <= 0.99


def test_where_chance_does_no_harm_there_is_no_share_of_it():
    stream = np.random.default_rng(0)
    idle = random_truth(stream)
    idle.chance = idle.chance - 10
    row = by_layer([idle]).iloc[0]
    assert np.isnan(row[["harm", "harm_low", "harm_high"]].astype(float)).all()
    assert row["rise"] > 0


def test_criteria_that_refuse_layers_come_last(truth):
    other = LayerTruth("conv", 4, {"wrong": -WORTH}, truth.chance)
    other.forward["wrong"] = other.reverse["wrong"] = np.full(3, 100.0)
    both = [truth, other]
    found = overall(both, by_layer(both), {})
    assert found["criterion"].tolist() == ["wrong", "right", "shapley"]
