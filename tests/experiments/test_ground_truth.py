"""experiments/ground_truth: its command fits the program, its page the committed tables."""

import shlex
from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_module

from pruning_lab import criteria
from pruning_lab.compare import markdown
from pruning_lab.setup import plain
from pruning_lab.truth import Settings
from pruning_lab.truth.tables import RANDOM, over_networks, readable

FOLDER = Path(__file__).parents[2] / "experiments/ground_truth"
PAGE = (FOLDER / "README.md").read_text()


def test_the_command_composes_and_its_criteria_exist():
    (line,) = (
        each for each in PAGE.splitlines() if each.startswith("python -m pruning_lab.truth -m")
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
    rows = table[0].set_index("criterion").drop([RANDOM, "thinet"])
    rank = set(rows.index[rows["quantile_high"] < 0.5])
    points = set(rows.index[rows["points_vs_random_high"] < 0])
    both = {"fisher", "owen_gradient", "obd", "bn_scale", "banzhaf"}
    assert rank == both | {"taylor", "shapley"}
    assert points == both | {"mean_activation"}
    gains = -rows.loc[sorted(both), "points_vs_random"]
    assert f"{gains.min():.1f} to {gains.max():.1f} points less" in PAGE
    assert (rows["quantile_low"] < 0.5).all()
    assert (rows["points_vs_random_low"] < 0).all()
    for name, said in (("apoz", "0.68\n  (0.47 to 0.89)"), ("internal_influence",
                       "0.58 (0.42 to 0.74)")):  # fmt: skip
        value, low, high = rows.loc[name, ["quantile", "quantile_low", "quantile_high"]]
        assert f"{value:.2f} ({low:.2f} to {high:.2f})" == said.replace("\n ", "")
        assert said in PAGE
    seconds = rows["seconds"]
    cheap = seconds[["fisher", "obd", "bn_scale"]]
    assert f"{cheap.min():.1f} to {cheap.max():.1f} s" in PAGE
    dear = [f"{seconds[name]:.0f} s" for name in ("owen_gradient", "banzhaf", "shapley")]
    assert dear == ["44 s", "19 s", "8 s"]


def test_what_random_orders_cost(table):
    layers = table[1]
    cost = layers[layers["criterion"] == RANDOM].groupby("layer")["points"].mean()
    sums = cost[["conv", "blocks.3.conv2", "blocks.6.conv2"]]
    rest = cost.drop(sums.index)
    assert len(rest) == 9
    assert f"{sums.min():.1f} to {sums.max():.1f}\n  points" in PAGE
    assert f"{rest.min():.1f} to {rest.max():.1f}, and" in PAGE


def test_the_readme_says_the_same():
    text = (FOLDER.parents[1] / "README.md").read_text()
    assert "Fisher, OBD, the scale of BatchNorm, Banzhaf and the Owen gradient do less harm" in text
    assert "0.6 to 1.2 points; Taylor and Shapley values only in rank." in text
    assert "0.6 to 1.2 points less" in PAGE  # which is tested above
