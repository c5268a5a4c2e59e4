"""experiments/ground_truth: its command fits the program, its page the committed tables."""

import shlex
from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_module
from scipy import stats

from pruning_lab import criteria
from pruning_lab.compare import holm, markdown
from pruning_lab.config.build import plain
from pruning_lab.ground_truth.layer import Settings
from pruning_lab.ground_truth.tables import RANDOM, over_networks, readable

FOLDER = Path(__file__).parents[2] / "experiments/ground_truth"
PAGE = (FOLDER / "README.md").read_text()


def test_the_command_composes_and_its_criteria_exist():
    (line,) = (
        each
        for each in PAGE.splitlines()
        if each.startswith("python -m pruning_lab.ground_truth -m")
    )
    words = [word for word in shlex.split(line)[4:] if not word.startswith("hydra.")]
    words[0] = words[0].partition(",")[0]
    with initialize_config_module("pruning_lab.conf", version_base="1.3"):
        truth = plain(compose("truth", words).truth)
    assert words[0] == "seed=0"
    assert set(truth["criteria"]) <= set(criteria.names())
    names = ("shares", "draws", "sizes", "sets", "greedy")
    settings = Settings(**{name: truth[name] for name in names})
    assert (list(settings.shares), settings.draws) == ([0.1, 0.3, 0.5], 32)


@pytest.fixture(scope="module")
def table():
    folders = [FOLDER / str(seed) for seed in range(3)]
    networks, tables = (
        [pd.read_csv(folder / name) for folder in folders] for name in ("layers.csv", "truth.csv")
    )
    return over_networks(networks, tables), pd.concat(networks)


def test_the_table_is_that_of_the_networks(table):
    assert markdown(readable(table[0])) in PAGE


def test_what_is_said_of_criteria_beside_random_orders(table):
    rows = table[0].set_index("criterion")
    band, rows = rows.loc[RANDOM], rows.drop([RANDOM, "thinet"])
    rank = set(rows.index[rows["quantile_high"] < 0.5])
    points = set(rows.index[rows["points_vs_random_high"] < 0])
    four = {"fisher", "owen_gradient", "obd", "banzhaf"}
    assert rank == four | {"bn_scale", "taylor", "shapley"}
    assert points == four | {"bn_scale", "mean_activation"}
    assert rank <= set(rows.index[rows["quantile"] < band["quantile_low"]])
    assert set(rows.index[rows["points_vs_random"] < band["points_vs_random_low"]]) == four
    gains = -rows.loc[sorted(four), "points_vs_random"]
    assert f"{gains.min():.1f} to {gains.max():.1f} points less" in PAGE
    assert round(-rows.loc["bn_scale", "points_vs_random"], 2) == 0.61
    seconds = rows["seconds"]
    cheap = seconds[["fisher", "obd", "bn_scale"]]
    assert f"{cheap.min():.1f} to {cheap.max():.1f} s" in PAGE
    dear = [f"{seconds[name]:.0f} s" for name in ("owen_gradient", "banzhaf", "shapley")]
    assert dear == ["44 s", "19 s", "8 s"]


def test_what_is_said_of_those_that_do_more_harm(table):
    rows = table[0].set_index("criterion")
    band, rows = rows.loc[RANDOM], rows.drop([RANDOM, "thinet"])
    assert (rows["quantile_low"] < 0.5).all()
    assert (rows["points_vs_random_low"] < 0).all()
    assert set(rows.index[rows["quantile"] > band["quantile_high"]]) == {
        "apoz", "taylor_signed", "leave_one_out",
    }  # fmt: skip
    assert set(rows.index[rows["points_vs_random"] > band["points_vs_random_high"]]) == {
        "apoz", "taylor_signed", "hrank",
    }  # fmt: skip
    value, low, high = rows.loc["internal_influence", ["quantile", "quantile_low", "quantile_high"]]
    assert f"{value:.2f} ({low:.2f} to {high:.2f})" in PAGE


def test_what_remains_with_a_correction(table):
    rows = table[0].set_index("criterion").drop(RANDOM)
    assert len(rows) == 17
    remaining = {}
    for measure, chance in (("quantile", 0.5), ("points_vs_random", 0)):
        half = (rows[f"{measure}_high"] - rows[f"{measure}_low"]) / 2
        errors = half / stats.t.ppf(0.975, 2)
        adjusted = holm(2 * stats.t.sf((rows[measure] - chance).abs() / errors, 2))
        left = pd.Series(adjusted, rows.index)
        remaining[measure] = left[left < 0.05]
    assert remaining["quantile"].index.tolist() == ["taylor"]
    assert f"p = {remaining['quantile']['taylor']:.3f}" in PAGE
    assert remaining["points_vs_random"].empty
    assert round(rows["leave_one_out"].abs().max(), 2) == 0.21


def test_what_random_orders_cost(table):
    layers = table[1]
    cost = layers[layers["criterion"] == RANDOM].groupby("layer")["points"].mean()
    sums = cost[["conv", "blocks.3.conv2", "blocks.6.conv2"]]
    rest = cost.drop(sums.index)
    assert len(rest) == 9
    assert f"{sums.min():.1f} to {sums.max():.1f}\n  points" in PAGE
    assert f"{rest.min():.1f} to {rest.max():.1f}, and" in PAGE


def test_the_results_say_the_same():
    text = (FOLDER.parents[1] / "docs/results.md").read_text()
    text = " ".join(text.split())
    assert (
        "Fisher, OBD, Banzhaf and the Owen gradient do less harm than random orders, by 0.8" in text
    )
    assert "to 1.2 points; Taylor and Shapley values only in rank." in text
    assert "only Taylor's rank remains" in text
    assert "0.8 to 1.2 points less" in PAGE  # which is tested above
