"""experiments/pilots: the page's tables and sentences are those of the committed rows."""

from pathlib import Path

import pandas as pd
import pytest
import yaml

from experiments.pilots import choose
from experiments.pilots.networks import NETWORKS

ROOT = Path(__file__).parents[2]
TEXT = (choose.FOLDER / "README.md").read_text()
RECOVERY = pd.read_csv(choose.FOLDER / "recovery.csv")
REDUCTIONS = pd.read_csv(choose.FOLDER / "reductions.csv")
SAMPLED = ["owen_gradient", "banzhaf", "shapley 16", "shapley 64"]


def settings(name):
    return yaml.safe_load((ROOT / "conf" / f"{name}.yaml").read_text())


@pytest.mark.parametrize("rows", [RECOVERY, REDUCTIONS], ids=["recovery", "reductions"])
def test_every_network_is_in_both_tables(rows):
    found = rows[choose.NETWORK].drop_duplicates().itertuples(index=False, name=None)
    assert sorted(found) == sorted(NETWORKS)


def test_the_tables_are_those_of_the_rows():
    assert choose.readable(choose.recipes(RECOVERY)) in TEXT
    assert choose.readable(choose.reductions(REDUCTIONS)) in TEXT


def test_a_gain_by_hand():
    rows = RECOVERY.query("lr_schedule == 'cosine' and lr == 0.03 and steps == 160")
    gains = 100 * (rows["accuracy"] - rows["accuracy_before"])
    assert len(gains) == 24
    row = choose.recipes(RECOVERY).query("lr_schedule == 'cosine' and lr == 0.03 and steps == 160")
    assert row["gain"].item() == pytest.approx(gains.mean())  # four cases each
    assert row["worst"].item() == pytest.approx(gains.min(), abs=0.005)


def test_the_default_recipe_is_the_one_with_the_highest_gain():
    table, default = choose.recipes(RECOVERY), settings("finetune/sgd")
    best = table.loc[table["gain"].idxmax()]
    assert [best["lr_schedule"], best["lr"], best["steps"]] == [
        default["lr_schedule"], default["lr"], default["steps"]
    ]  # fmt: skip
    assert table["worst"].min() >= -0.1
    assert best["lr"] == table["lr"].max()
    networks = RECOVERY.assign(gain=RECOVERY["accuracy"] - RECOVERY["accuracy_before"]).query(
        "steps == 160 and lr >= 0.003"
    )
    wide = networks.groupby([*choose.NETWORK, "lr_schedule", "lr"])["gain"].mean().unstack([3, 4])
    for one in wide:
        for other in wide:
            gaps = wide[one] - wide[other]
            assert one == other or abs(gaps.mean()) < choose.half_width(gaps)


def test_the_default_reduction_is_the_one_that_leaves_most():
    table = choose.reductions(REDUCTIONS).set_index(["criterion", "reduction"])
    gaps = []
    for criterion in SAMPLED:
        own = table.loc[criterion]
        assert own["accuracy"].idxmax() == "mean_plus_2_std"
        best = own.loc["mean_plus_2_std"]
        assert best["beyond mean"] < best["half mean"]
        gaps.append(best["beyond mean"])
    assert f"{min(gaps):.1f} to {max(gaps):.1f} points more than the mean" in TEXT
    for metric in ("owen_gradient", "banzhaf", "shapley"):
        assert settings(f"metric/{metric}")["reduction"] == "mean_plus_2_std"
    for metric in ("taylor", "sensitivity"):
        assert settings(f"metric/{metric}")["reduction"] == "mean"
        assert table.loc[metric, "accuracy"]["mean"] == table.loc[metric, "accuracy"]["mean_abs"]


def test_what_is_said_beside_random_removal():
    table = choose.reductions(REDUCTIONS).set_index(["criterion", "reduction"])
    ahead = table[table["beyond random"] > table["half random"]].index
    assert {criterion for criterion, _ in ahead} == {"banzhaf"}
    taylor = table.loc["taylor", "mean"]
    words = f"Taylor has {-taylor['beyond random']:.1f} points less than random removal on average"
    assert f"{words}, but its interval is ± {taylor['half random']:.1f}" in " ".join(TEXT.split())
    many, few = (table.loc[f"shapley {n}", "mean_plus_2_std"]["accuracy"] for n in (64, 16))
    rows = REDUCTIONS[REDUCTIONS["reduction"] == "mean_plus_2_std"]
    wide = rows.groupby([*choose.NETWORK, "criterion"])["accuracy"].mean().unstack("criterion")
    gaps = 100 * (wide["shapley 64"] - wide["shapley 16"])
    apart = f"a difference of {gaps.mean():.1f} ± {choose.half_width(gaps):.1f}"
    assert f"({many:.1f} and {few:.1f} %, {apart})" in TEXT


def test_where_the_gain_comes_from():
    rows = REDUCTIONS[REDUCTIONS["criterion"].isin(SAMPLED)]
    means = rows.groupby(["model", "dataset", "seed", "reduction"])["accuracy"].mean().unstack()
    gains = 100 * (means["mean_plus_2_std"] - means["mean"])
    said = {
        ("resnet20", "digits", 100): 15.8, ("resnet20", "fashion_mnist", 100): 12.4,
        ("vgg11", "digits", 100): 8.7, ("convnet", "fashion_mnist", 100): 1.9,
        ("convnet", "fashion_mnist", 101): 0.0, ("convnet", "digits", 100): -2.8,
    }  # fmt: skip
    assert gains.round(1).to_dict() == said
    hard = REDUCTIONS.query("target == 0.8 and model == 'resnet20'")
    right = 100 * hard.groupby("dataset")["accuracy"].mean()
    assert right.round().to_dict() == {"digits": 20, "fashion_mnist": 17}
