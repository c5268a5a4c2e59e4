"""Criteria beside random orders, layer by layer, over layers and over networks: by hand."""

import numpy as np
import pytest
from scipy import stats

from pruning_lab.ground_truth.layer import Curve, LayerTruth
from pruning_lab.ground_truth.tables import (
    RANDOM,
    by_layer,
    over_networks,
    overall,
    quantile,
    readable,
)
from pruning_lab.profiling.passes import ScoringCost


def curve(nats, points=0.0):
    return Curve(np.array([points, points]), np.array([nats, nats], dtype=float))


def layer(name, harms, random=(1.0, 2.0, 3.0, 4.0), points=0.0):
    """A layer in which criteria do ``harms``, in nats; one point of accuracy is lost for each."""
    scores = {criterion: np.arange(4.0) for criterion in harms}
    curves = {criterion: curve(harm, harm + points) for criterion, harm in harms.items()}
    return LayerTruth(
        name, 4, np.array([1, 2]), scores, [curve(harm, harm + points) for harm in random],
        curves, {criterion: curve(5) for criterion in harms},
    )  # fmt: skip


def test_the_quantile_by_hand():
    random = [1.0, 2.0, 2.0, 3.0]
    assert quantile(0.5, random) == 0
    assert quantile(1.5, random) == 1 / 4
    assert quantile(2.0, random) == 2 / 4  # one does less, two the same
    assert quantile(9.0, random) == 1


def test_a_layer_by_hand():
    table = by_layer([layer("conv", {"good": 1.5, "bad": 4.0})]).set_index(["criterion", "order"])
    good, bad = (table.loc[name].iloc[0] for name in ("good", "bad"))
    measures = ["nats", "points", "quantile", "nats_vs_random", "points_vs_random", "reverse"]
    assert good[measures].tolist() == [1.5, 1.5, 0.25, -1, -1, 1]
    assert bad[measures].tolist() == [4, 4, 3.5 / 4, 1.5, 1.5, 1]
    random = table.loc[RANDOM]
    assert random["quantile"].tolist() == [0, 1 / 3, 2 / 3, 1]  # each among the other three
    np.testing.assert_allclose(random["nats_vs_random"], [1 - 3, 2 - 8 / 3, 3 - 7 / 3, 4 - 2])


def test_means_over_the_numbers_of_removals():
    truth = layer("conv", {"good": 0})
    truth.forward["good"] = Curve(np.array([10.0, 30.0]), np.array([1.0, 2.0]))
    row = by_layer([truth]).iloc[0]
    assert row[["points", "nats", "quantile"]].tolist() == [20, 1.5, 0.25]


def test_where_nothing_does_harm_a_criterion_is_neither_good_nor_bad():
    row = by_layer([layer("idle", {"good": 0.0}, random=(0.0, 0.0, 0.0))]).iloc[0]
    assert row[["quantile", "nats_vs_random", "points_vs_random"]].tolist() == [0.5, 0, 0]


def test_oracles_and_agreement():
    truth = layer("conv", {"right": 0, "wrong": 0, "shapley": 0})
    worth = np.array([1.0, 2.0, 4.0, 8.0])
    truth.scores = {"right": worth, "wrong": -worth, "shapley": np.array([1.0, 2.0, 8.0, 4.0])}
    factors = np.arange(1, 4)[:, None]
    pairs = [one + other for i, one in enumerate(worth) for other in worth[i + 1 :]]
    truth.sets, truth.greedy = {1: factors * worth, 2: factors * pairs}, [0, 1]
    table = by_layer([truth]).set_index("criterion")
    for size in (1, 2):  # the best set there is, and the worst
        assert table.loc["right", f"oracle_{size}"] == 0
        assert table.loc["wrong", f"oracle_{size}"] == 1
    assert table.loc[["right", "wrong"], "leave_one_out"].tolist() == pytest.approx([1, -1])
    assert table.loc["shapley", "leave_one_out"] == pytest.approx(0.8)  # 1 - 6 * 2 / (4 * 15)
    assert table.loc[["right", "wrong"], "shapley"].tolist() == pytest.approx([0.8, -0.8])
    assert np.isnan(table.loc["shapley", "shapley"])
    assert table.loc[["right", "wrong", "shapley"], "greedy"].tolist() == [1, -1, 1]


LAYERS = (
    layer("one", {"good": 0.5, "bad": 3.5, "part": 0.0}),
    layer("two", {"good": 1.5, "bad": 4.5}, points=30),
    layer("three", {"good": 2.5, "bad": 4.5}, random=(4.0, 3.0, 2.0, 1.0)),
)


def test_over_layers_every_layer_has_the_same_weight():
    table = overall(by_layer(LAYERS), {"good": ScoringCost(forward=3, backward=5, seconds=7)})
    assert table["criterion"].tolist() == ["good", RANDOM, "bad", "part"]  # which refuses two
    rows = table.set_index("criterion")
    good = rows.loc["good"]
    assert good[["quantile", "nats_vs_random", "points_vs_random"]].tolist() == [0.25, -1, -1]
    half = stats.t.ppf(0.975, 2) * 0.25 / 3**0.5  # quantiles 0, 0.25 and 0.5
    assert good["quantile_low"] == max(0, 0.25 - half)
    assert good["quantile_high"] == pytest.approx(0.25 + half)
    half = stats.t.ppf(0.975, 2) / 3**0.5  # differences -2, -1 and 0
    assert good[["nats_vs_random_low", "nats_vs_random_high"]].tolist() == pytest.approx(
        [-1 - half, -1 + half]
    )
    assert good[["layers", "forward", "backward", "seconds"]].tolist() == [3, 3, 5, 7]
    assert np.isnan(rows.loc["part", "nats_vs_random_low"])  # of one layer


def test_the_range_of_random_orders():
    """In the first two layers the orders do 1, 2, 3, 4, in the third 4, 3, 2, 1."""
    row = overall(by_layer(LAYERS), {}).set_index("criterion").loc[RANDOM]
    assert row["layers"] == 3
    assert row["quantile"] == pytest.approx(0.5)
    assert row["nats_vs_random"] == pytest.approx(0)
    means = np.array([-2, -2 / 3, 2 / 3, 2]) / 3  # (1 + 1 - 1) / 3 of a layer's own
    half = stats.t.ppf(0.975, 3) * means.std(ddof=1)
    assert row["nats_vs_random_high"] == pytest.approx(half)
    assert row["nats_vs_random_low"] == pytest.approx(-half)


def test_over_networks_by_hand():
    """Network means of -1 and -2 nats."""
    networks = [by_layer(LAYERS), by_layer([layer("one", {"good": 0.5, "bad": 3, "part": 1})])]
    tables = [
        overall(each, {"good": ScoringCost(seconds=n)})
        for each, n in zip(networks, (2, 4), strict=True)
    ]
    rows = over_networks(networks, tables).set_index("criterion")
    good = rows.loc["good"]
    assert good[["networks", "layers", "nats_vs_random", "seconds"]].tolist() == [2, 2, -1.5, 3]
    half = stats.t.ppf(0.975, 1) * 0.5  # the standard error of -1 and -2
    assert good["nats_vs_random_low"] == pytest.approx(-1.5 - half)
    assert good["quantile"] == 0.125
    random = rows.loc[RANDOM]
    means = np.array([-2, -2 / 3, 2 / 3, 2]) * (1 / 3 + 1) / 2
    assert random["nats_vs_random_high"] == pytest.approx(stats.t.ppf(0.975, 3) * means.std(ddof=1))
    assert random["networks"] == 2


def test_the_table_for_people():
    shown = readable(overall(by_layer(LAYERS), {"good": ScoringCost(forward=1234, seconds=0.5)}))
    assert shown.index.tolist() == ["good", "Random orders", "bad", "part"]
    assert shown.loc["good", "quantile"] == "0.25 (0.00 to 0.87)"
    assert shown.loc["Random orders", "points vs random"].startswith("+0.00 (-")
    assert shown.loc["good", ["layers", "reverse", "forward", "seconds"]].tolist() == [
        "3", "1.00", "1,234", "0.5",
    ]  # fmt: skip
    assert "greedy" not in shown  # which nobody has here
    assert shown.loc["part", "nats vs random"] == "-2.500"  # one layer has no interval
