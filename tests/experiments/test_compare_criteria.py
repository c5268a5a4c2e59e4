"""experiments/compare_criteria, low_data, README: what they say is what the records say."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.compare_criteria import analyse, tables
from experiments.compare_criteria.records import FEW, LAYERWISE, LONG, NONE, STEPWISE, Block
from pruning_lab.compare.statistics import half_width

ROOT = Path(__file__).parents[2]


def words_of(path):
    return " ".join((ROOT / path / "README.md").read_text().split())


PAGE, LOW_DATA, README = (
    words_of(path) for path in ("experiments/compare_criteria", "experiments/low_data", "")
)


@pytest.fixture(scope="module")
def block():
    return Block("convnet")


@pytest.fixture(scope="module")
def contrasts():
    return tables.read("contrasts").query("block == 'convnet'").set_index("contrast")


def test_twelve_networks_were_pruned_from_the_start_that_all_criteria_share(block):
    assert block.networks == list(range(8))
    for _, own in block.rows.groupby("network"):
        first = own[own["step"] == 0]
        assert first["test_accuracy_after"].nunique() == 1
        path = block.folder / "convnet" / f"{own['network'].iloc[0]:02d}.npz"
        with np.load(path) as kept:
            rows = first["pictures"].to_numpy()
            assert not kept["correct"][rows[rows > 0]].any()  # as the first row, picture by picture


def test_the_contrasts_are_those_of_the_records(block, contrasts):
    found = analyse.contrasts(block).set_index("contrast")
    pd.testing.assert_frame_equal(found, contrasts, rtol=1e-4, check_dtype=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["summary", "secondary", "classes", "regret", "draws", "claim", "gains"]
)
def test_all_results_are_those_of_the_records(block, name):
    found, written = getattr(analyse, name)(block), tables.read(name)
    own = written[written["block"] == block.name].reset_index(drop=True)
    pd.testing.assert_frame_equal(found, own, rtol=1e-4, check_dtype=False)


@pytest.mark.parametrize("table", tables.page())
def test_the_page_has_the_tables_of_the_results(table):
    assert table in (ROOT / "experiments/compare_criteria/README.md").read_text()


def test_the_other_pages_have_theirs():
    assert tables.readme() in (ROOT / "README.md").read_text()
    page = (ROOT / "experiments/low_data/README.md").read_text()
    assert tables.claim() in page
    assert tables.layerwise("convnet") in page


def interval(row):
    return f"{row['mean']:.1f} ({row['low']:.1f} to {row['high']:.1f})"


@pytest.fixture(scope="module")
def beyond():
    """What criteria have beyond random removal, by repair, as it is written."""
    rows = tables.read("summary").query("block == 'convnet' and removed == 'all cuts'")
    return {
        (row.criterion, row.repair): f"{row.beyond:+.1f} ± {row.beyond_half:.1f}"
        for row in rows.itertuples()
    }


def test_what_is_said_of_stale_statistics(contrasts, beyond):
    name = "(taylor - random) stale - made anew"
    whole, first = contrasts.loc[name], contrasts.loc[f"{name}, first cut"]
    lead = f"Taylor has {beyond['taylor', 'stale']} points beyond random removal"
    assert f"{lead} where they stay as they were, and {beyond['taylor', NONE]}" in PAGE
    assert f"are made anew: {interval(whole)} less. At the first cut" in PAGE
    assert f"it is {interval(first)} less" in PAGE
    assert whole["low"] > 0
    assert first["low"] < 0 < first["high"]
    assert f"{lead} with them, and {beyond['taylor', NONE]} with new ones" in README
    assert f"the two differ by {interval(first)}" in README
    rows = tables.read("summary").query(
        "block == 'convnet' and criterion == 'random' and removed == 'third cut'"
    )
    at = rows.set_index("repair")["accuracy"]
    assert f"({at['stale']:.1f} % after the third cut, where it has {at[NONE]:.1f} %" in PAGE


def test_what_is_said_without_fine_tuning(contrasts, beyond):
    taylor, shapley = contrasts.loc["taylor - random"], contrasts.loc["shapley mean 256 - taylor"]
    taylor = taylor[taylor["repair"] == NONE].iloc[0]
    for page in (PAGE, README):
        assert f"Taylor cannot be told from random removal ({interval(taylor)})" in page
        assert f"Shapley values are {interval(shapley)} above Taylor" in page
    assert f"weight norm is far below it ({beyond['weight_norm', NONE]})" in PAGE
    assert taylor["low"] < 0 < taylor["high"]
    assert shapley["low"] > 0
    magnitudes = contrasts.loc["shapley mean_abs 256 - taylor"]
    signs = contrasts.loc["shapley mean 256 - taylor_signed"]
    assert f"mean of absolute values by {interval(magnitudes)}" in PAGE
    assert f"Shapley values are {interval(signs)} above signed Taylor" in PAGE
    half = shapley["mean"] / 2
    assert min(magnitudes["mean"], -contrasts.loc["taylor - taylor_signed", "mean"]) > half
    pictures = contrasts.loc["shapley mean 256 - shapley mean 16"]
    assert f"256 pictures instead of 16 give them {interval(pictures)}" in PAGE


def test_what_is_said_after_fine_tuning_on_all_pictures(contrasts):
    rows = contrasts[contrasts["repair"] == LONG]
    taylor, shapley = (rows.loc[f"{name} - random"] for name in ("taylor", "shapley mean 256"))
    said = f"within half a point ({interval(taylor)} and {interval(shapley)})"
    assert said in PAGE
    assert said in README
    last = [rows.loc[f"{n} - random, last cut"] for n in ("taylor", "shapley mean 256")]
    assert f"at the last cut, too ({interval(last[0])} and {interval(last[1])})" in PAGE
    assert rows["p_equivalent"].max() < 0.05
    gain = contrasts.loc["160 steps - 0 steps, all criteria"]
    assert f"brings {interval(gain)} points, mean of the criteria" in PAGE


def test_what_is_said_of_a_hundred_pictures(contrasts, beyond):
    best = "shapley mean_plus_2_std 256"
    rows = contrasts[contrasts["repair"] == FEW]
    random, taylor, norm = (rows.loc[f"{best} - {n}"] for n in ("random", "taylor", "weight_norm"))
    assert f"is {beyond['weight_norm', FEW]} beyond random removal, Taylor" in PAGE
    assert (
        f"Taylor {beyond['taylor', FEW]}, the Owen gradient {beyond['owen_gradient', FEW]}" in PAGE
    )
    assert f"mean plus two standard deviations {interval(random)}." in PAGE
    assert f"is at {beyond['shapley mean 256', FEW]}, signed" in PAGE
    assert f"signed Taylor at {beyond['taylor_signed', FEW]}" in PAGE
    assert f"({interval(taylor)} and {interval(norm)})" in PAGE
    assert f"comes to {interval(taylor)} and {interval(norm)}" in README
    assert max(taylor["mean"], norm["mean"]) < 0.5
    one_to_two = [float(beyond[n, FEW].split()[0]) for n in
                  ("weight_norm", "taylor", "owen_gradient", best)]  # fmt: skip
    assert 1 <= min(one_to_two) <= max(one_to_two) <= 2
    without = {name: value for (name, repair), value in beyond.items() if repair == NONE}
    ordered = sorted(without, key=lambda name: float(without[name].split()[0]))
    assert (ordered[0], ordered[-1]) == ("weight_norm", "shapley mean 256")


def test_what_is_said_of_the_choice(block):
    rows = tables.read("regret").query("seconds == inf and removed == 'all cuts'")
    table = rows.pivot_table("regret", "criterion", "repair").drop(columns="stale").dropna()
    worst, seconds = table.max(axis=1), analyse.seconds(block)
    assert worst.idxmin() == "owen_gradient"
    assert f"never more than {worst['owen_gradient']:.1f} points below the best" in PAGE
    assert f"the mean of Shapley values {worst['shapley mean 256']:.1f}" in PAGE
    assert f"two standard deviations {worst['shapley mean_plus_2_std 256']:.1f}, Taylor" in PAGE
    assert f"Taylor {worst['taylor']:.1f}. Scores" in PAGE
    assert f"take {seconds['owen_gradient']:.1f} s by the Owen gradient" in PAGE
    assert f"{seconds['shapley mean 256']:.1f} s by Shapley values of 256 pictures" in PAGE
    assert f"{seconds['taylor']:.1f} s by Taylor" in PAGE


def test_what_is_said_of_classes_and_biases():
    classes = tables.read("classes").query("block == 'convnet'").set_index("criterion")
    for name in ("taylor", "weight_norm", "random", "taylor_signed"):
        assert f"({classes.spearman[name]:.2f} ± {classes.half[name]:.2f})" in PAGE
    assert (classes.loc[["taylor", "weight_norm"], "beyond"] < 0).all()
    lost = classes.loc[["taylor", "weight_norm"]]
    assert (lost["spearman"] + lost["half"] < 0).all()
    before, after = tables.by_network("test_accuracy_after"), tables.by_network("refitted")
    gain, lead = after - before, after.sub(after["random"], axis=0)
    said = tables.mean_and_half_width
    assert f"bring back {said(gain['taylor'])} points of Taylor's" in PAGE
    assert f"{said(gain['weight_norm'])} of weight norm's accuracy" in PAGE
    assert f"bring back {said(gain['weight_norm'])} points to weight norm" in README
    assert f"of random removal's {said(gain['random'])}; after that Taylor is" in PAGE
    assert f"{said(lead['taylor'])} beyond random removal, weight norm" in PAGE
    assert f"weight norm {said(lead['weight_norm'])}" in PAGE
    for name, words in (("taylor_signed", "Signed Taylor"), ("owen_gradient", "the Owen gradient")):
        assert f"{words} ({said(lead[name])})" in PAGE
        assert lead[name].mean() - half_width(lead[name]) > 0


def test_what_is_said_layer_by_layer():
    rows = tables.read("summary").query("repair == '0 steps on 100 pictures'")
    rows = rows[rows["schedule"] == LAYERWISE].set_index("criterion")
    taylor, norm = (
        f"{rows.beyond[name]:+.1f} ± {rows.beyond_half[name]:.1f}"
        for name in ("taylor", "weight_norm")
    )
    assert f"far below random removal here ({taylor} and {norm})" in PAGE
    assert not (rows["beyond"] - rows["beyond_half"] > 0).any()


def test_what_is_said_of_fine_tuning_that_harms():
    rows = tables.read("gains").query("removed == 'first cut'").set_index(["repair", "criterion"])
    few, many = rows.loc[FEW], rows.loc[LONG]
    worse = few[few["high"] < 0]
    assert len(worse) == 7
    said = f"lower the accuracy of seven of nine criteria, by {-worse['mean'].max():.1f} to"
    for page in (PAGE, LOW_DATA):
        assert f"{said} {-worse['mean'].min():.1f} points" in page
    assert (many["low"] > 0).all()
    assert f"raise all nine, by {many['mean'].min():.1f} to {many['mean'].max():.1f}" in PAGE
    last = tables.read("gains").query("removed == 'last cut' and repair == @LONG")
    assert (last["low"] > 0).all()


SAID = {
    "stale": ["random", "weight_norm", "taylor", "owen_gradient"],
    "0 steps on 100 pictures": ["random", "taylor", "taylor_signed", "owen_gradient", "banzhaf"],
    FEW: ["random", "taylor", "weight_norm", "owen_gradient"],
}
"""The criteria that the words of low_data compare with, by repair."""


def test_what_is_said_of_the_claim():
    rows = tables.read("claim")
    rows = rows[rows["schedule"] == STEPWISE].set_index(["repair", "criterion"])
    for (repair, criterion), row in rows.iterrows():
        if criterion in SAID[repair]:
            assert interval(row) in LOW_DATA
    stale, recalibrated, tuned = (
        rows.loc[repair] for repair in ("stale", "0 steps on 100 pictures", FEW)
    )
    assert (stale["low"].drop("owen_gradient") > 0).all()
    assert stale.loc["owen_gradient", "low"] < 0
    assert (recalibrated.loc[["random", "taylor"], "low"] > 0).all()
    others = ["taylor_signed", "owen_gradient", "banzhaf"]
    assert (recalibrated.loc[others, "low"] < 0).all()
    assert tuned.loc["random", "low"] > 0
    assert (tuned.loc[["taylor", "weight_norm", "owen_gradient"], "mean"].abs() < 0.5).all()
