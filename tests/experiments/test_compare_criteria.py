"""Two pages of experiments, docs/results.md and README say what the records say."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.compare_criteria import analyse, tables
from experiments.compare_criteria.records import CUTS, FEW, LAYERWISE, LONG, NONE, STEPWISE, Block
from experiments.crossed import crossed_mean
from pruning_lab.compare.agreement import spearman
from pruning_lab.compare.report import mean_and_half_width
from pruning_lab.compare.statistics import half_width

ROOT = Path(__file__).parents[2]


def words_of(*paths):
    return " ".join(" ".join((ROOT / path).read_text().split()) for path in paths)


PAGE, LOW_DATA, RESULTS = (
    words_of("experiments/compare_criteria/README.md"),
    words_of("experiments/low_data/README.md"),
    words_of("README.md", "docs/results.md"),
)


@pytest.fixture(scope="module")
def block():
    return Block("convnet")


@pytest.fixture(scope="module")
def contrasts():
    return of_convnet("contrasts").set_index("contrast")


def test_twelve_networks_were_pruned_from_the_start_that_all_criteria_share(block):
    assert block.networks == list(range(12))
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
    "name", ["summary", "secondary", "classes", "regret", "draws", "claim", "gains", "pairs"]
)
def test_all_results_are_those_of_the_records(block, name):
    found, written = getattr(analyse, name)(block), tables.read(name)
    own = written[written["block"] == block.name].reset_index(drop=True)
    pd.testing.assert_frame_equal(found, own, rtol=1e-4, check_dtype=False)


@pytest.mark.parametrize("table", tables.page())
def test_the_page_has_the_tables_of_the_results(table):
    assert table in (ROOT / "experiments/compare_criteria/README.md").read_text()


def test_the_other_pages_have_theirs():
    assert tables.results() in (ROOT / "docs/results.md").read_text()
    page = (ROOT / "experiments/low_data/README.md").read_text()
    assert tables.claim() in page
    assert tables.layerwise("convnet") in page


def interval(row):
    return f"{row['mean']:.1f} ({row['low']:.1f} to {row['high']:.1f})"


def of_convnet(name):
    return tables.read(name).query("block == 'convnet'")


def summary(query):
    rows = of_convnet("summary").query(query)
    return rows[rows["schedule"] == STEPWISE]


@pytest.fixture(scope="module")
def beyond():
    """Cells of the page's tables: accuracy minus random removal's, by criterion and repair."""
    rows = summary("removed == 'all cuts'")
    return {
        (row.criterion, row.repair): f"{row.beyond:+.1f} ± {row.beyond_half:.1f}"
        for row in rows.itertuples()
    }


def test_what_is_said_of_stale_statistics(contrasts, beyond):
    name = "(taylor - random) stale - made anew"
    whole, first = contrasts.loc[name], contrasts.loc[f"{name}, first cut"]
    lead = f"Taylor has {beyond['taylor', 'stale']} points beyond random removal"
    assert lead in PAGE
    assert f"and {beyond['taylor', NONE]} where these are made anew: {interval(whole)} less" in PAGE
    assert f"both remove the same units: {interval(first)}. Later" in PAGE
    assert whole["low"] > 0
    assert f"{lead} then, and {beyond['taylor', NONE]} with new statistics" in RESULTS
    assert f"the two differ by {interval(first)}" in RESULTS
    at = summary("criterion == 'random' and removed == 'third cut'").set_index("repair")["accuracy"]
    assert f"({at['stale']:.1f} % after the third cut, where it has {at[NONE]:.1f} %" in PAGE
    means = summary("removed == 'all cuts'").pivot_table("accuracy", "criterion", "repair").dropna()
    apart = means.max() - means.min()
    assert apart.idxmax() == "stale"


def test_what_is_said_without_fine_tuning(contrasts, beyond):
    taylor, shapley = contrasts.loc["taylor - random"], contrasts.loc["shapley mean 256 - taylor"]
    taylor = taylor[taylor["repair"] == NONE].iloc[0]
    for page in (PAGE, RESULTS):
        assert f"({interval(taylor)})" in page.partition("Taylor is below random removal")[2][:40]
        assert f"Shapley values are {interval(shapley)} above Taylor" in page
    assert taylor["high"] < 0 < shapley["low"]
    assert max(taylor["p_holm"], shapley["p_holm"]) < 0.05
    assert f"which has {beyond['weight_norm', NONE]} beyond random removal" in PAGE
    magnitudes = contrasts.loc["shapley mean_abs 256 - taylor"]
    signs = contrasts.loc["taylor - taylor_signed"]
    assert f"Taylor - signed Taylor is {interval(signs)}" in PAGE
    assert f"mean of absolute values is {interval(magnitudes)} above Taylor" in PAGE
    assert min(magnitudes["mean"], -signs["mean"]) > shapley["mean"] / 2
    rows = summary("criterion == 'taylor_signed' and repair == @NONE").set_index("removed")
    first, last = (
        f"{rows.beyond[at]:+.1f} ± {rows.beyond_half[at]:.1f}" for at in ("first cut", "last cut")
    )
    assert f"signed Taylor has {first} beyond random removal at the first cut and {last}" in PAGE
    pictures = contrasts.loc["shapley mean 256 - shapley mean 16"]
    assert f"256 pictures instead of 16 give Shapley values {interval(pictures)}" in PAGE
    means = summary("removed == 'all cuts' and repair == @NONE").set_index("criterion")["accuracy"]
    means = means[[name for name, repair in beyond if repair == LONG]]
    rest = means.drop("weight_norm")
    apart, without = means.max() - means.min(), rest.max() - rest.min()
    assert f"are {apart:.0f} points apart, {without:.0f} without weight norm" in PAGE
    assert f"differ by {without:.0f} points, {apart:.0f} with weight norm" in RESULTS


def test_what_is_said_after_fine_tuning_on_all_pictures(contrasts):
    pairs = of_convnet("pairs").query("repair == @LONG")
    assert len(pairs) == 36
    assert pairs["p_equivalent"].max() < 0.05
    largest = pairs.loc[pairs["mean"].abs().idxmax()]
    assert {largest["criterion"], largest["other"]} == {"taylor", "taylor_signed"}
    ends = sorted(abs(largest[end]) for end in ("low", "high"))
    said = f"largest difference is {abs(largest['mean']):.1f} ({ends[0]:.1f} to {ends[1]:.1f})"
    assert said in PAGE
    assert said in RESULTS
    rows = contrasts[contrasts["repair"] == LONG]
    last = [rows.loc[f"{n} - random, last cut"] for n in ("taylor", "shapley mean 256")]
    assert f"planned are, too ({interval(last[0])} and {interval(last[1])})" in PAGE
    assert max(each["p_equivalent"] for each in last) < 0.05
    taylor = rows.loc["taylor - random"]
    assert f"That Taylor has {interval(taylor)} beyond random removal is significant" in PAGE
    assert max(taylor["p_holm"], taylor["p_equivalent"]) < 0.05
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
    for page in (PAGE, RESULTS):
        assert f"{interval(taylor)} and {interval(norm)} are left" in page
    assert taylor["p_holm"] < 0.05 < norm["p_holm"]
    one_to_two = [float(beyond[n, FEW].split()[0]) for n in
                  ("weight_norm", "taylor", "owen_gradient", best)]  # fmt: skip
    assert 1 <= min(one_to_two) <= max(one_to_two) <= 2
    without = {name: value for (name, repair), value in beyond.items() if repair == NONE}
    ordered = sorted(without, key=lambda name: float(without[name].split()[0]))
    assert (ordered[0], ordered[-1]) == ("weight_norm", "shapley mean 256")


def test_what_is_said_of_the_choice(block):
    rows = of_convnet("regret").query("seconds == inf and removed == 'all cuts'")
    rows = rows[rows["repair"] != "stale"]
    worst = rows.pivot_table("regret", "criterion", "repair").dropna().max(axis=1)
    seconds, limits = analyse.seconds(block), rows.groupby("criterion")["high"].max()
    assert worst.idxmin() == "owen_gradient"
    own = f"{worst['owen_gradient']:.1f} points below the best"
    assert f"never more than {own} (upper limit {limits['owen_gradient']:.1f})" in PAGE
    assert f"the mean of Shapley values {worst['shapley mean 256']:.1f}" in PAGE
    assert f"two standard deviations {worst['shapley mean_plus_2_std 256']:.1f}, Taylor" in PAGE
    assert f"Taylor {worst['taylor']:.1f}. Scores" in PAGE
    assert f"take {seconds['owen_gradient']:.1f} s by the Owen gradient" in PAGE
    assert f"{seconds['shapley mean 256']:.1f} s by Shapley values of 256 pictures" in PAGE
    assert f"{seconds['taylor']:.1f} s by Taylor" in PAGE


def test_what_is_advised():
    rows = of_convnet("regret").query("seconds == inf and removed == 'all cuts'")
    short = rows.pivot_table("regret", "criterion", "repair")
    two = [f"{short[NONE][name]:.1f}" for name in ("owen_gradient", "shapley mean 256")]
    assert f"({two[0]} and {two[1]} points below the best; on the two ResNet-20" in PAGE
    assert f"Weight norm is {short[FEW]['weight_norm']:.1f} points below the best" in PAGE
    assert set(short[FEW].nsmallest(3).index) == {
        "owen_gradient", "shapley mean_abs 256", "shapley mean_plus_2_std 256",
    }  # fmt: skip
    assert f"the worst is {short[LONG].max():.1f} points below the best" in PAGE
    rows = of_convnet("summary").query("repair == '0 steps on 100 pictures'")
    owen = rows[rows["schedule"] == LAYERWISE].set_index("criterion").loc["owen_gradient"]
    assert f"below random removal ({owen['beyond']:+.1f} ± {owen['beyond_half']:.1f})" in PAGE
    assert owen["beyond"] + owen["beyond_half"] < 0


def test_what_is_said_below_the_first_figure():
    rows = summary("removed == 'all cuts' and repair == @NONE").set_index("criterion")["beyond"]
    below, above = -rows["weight_norm"], rows["shapley mean 256"]
    words = f"weight norm is {below:.0f} points below random removal, Shapley values {above:.0f}"
    assert words in RESULTS
    largest = of_convnet("pairs").query("repair == @LONG")["mean"].abs().max()
    assert f"all criteria lie within {largest:.1f} points" in RESULTS


def test_what_is_said_of_classes():
    rows = of_convnet("classes").set_index("criterion")
    for name in ("taylor", "weight_norm", "random", "taylor_signed"):
        assert f"{rows.spearman[name]:.2f} ± {rows.half[name]:.2f}" in PAGE
    first = rows.loc[["taylor", "weight_norm"]]
    assert (first["spearman"] + first["half"] < 0).all()
    assert (first["beyond"] + first["beyond_half"] < 0).all()
    assert rows.spearman["taylor"] > -0.8
    assert (rows.loc[["random", "taylor_signed"], "spearman"] > 0).all()


def test_what_is_said_of_biases():
    before, unpruned = tables.refitted_by_network("test_accuracy_after"), 100 * whole_accuracy()
    restored, refitted = (tables.refitted_by_network(name) for name in ("restored", "refitted"))
    gain, lead = refitted - before, refitted.sub(refitted["random"], axis=0)
    off, old_means = tables.refitted_by_network("imbalance").mean(), restored - before
    assert f"{off['weight_norm']:.0f} and {off['taylor']:.0f} % of the test pictures" in PAGE
    assert f"{off['random']:.0f} % after random removal, {off['owen_gradient']:.0f} % by" in PAGE
    three = [f"{mean_and_half_width(gain[name])}" for name in ("weight_norm", "taylor", "random")]
    assert (
        f"{three[0]} points of weight norm's accuracy, {three[1]} of Taylor's and {three[2]}"
        in PAGE
    )
    assert f"bring {three[0]} points back to weight norm, and {three[2]} to random" in RESULTS
    shares = gain.mean() / (unpruned - before.mean())
    percent = [f"{100 * shares[name]:.0f}" for name in ("weight_norm", "taylor", "random")]
    assert f"{percent[0]}, {percent[1]} and {percent[2]} % of what each lost" in PAGE
    assert f"Taylor then has {mean_and_half_width(lead['taylor'])} beyond random removal" in PAGE
    assert f"weight norm {mean_and_half_width(lead['weight_norm'])}: with three" in PAGE
    ends = {"weight_norm": "points to weight norm", "taylor": "to Taylor",
            "random": "to random removal", "taylor_signed": "to signed Taylor"}  # fmt: skip
    for name, words in ends.items():
        assert f"{mean_and_half_width(old_means[name])} {words}" in PAGE
    assert (old_means[["weight_norm", "taylor"]].mean() > 0).all()
    assert (old_means[["random", "taylor_signed"]].mean() < 0).all()
    for name, words in (("taylor_signed", "signed Taylor"), ("owen_gradient", "the Owen gradient")):
        assert f"{words} ({mean_and_half_width(lead[name])})" in PAGE
        assert lead[name].mean() - half_width(lead[name]) > 0


def whole_accuracy():
    return pd.read_csv(tables.BIASES).query("step == 0")["test_accuracy_after"].mean()


def test_what_is_said_layer_by_layer():
    rows = of_convnet("summary").query("repair == '0 steps on 100 pictures'")
    rows = rows[rows["schedule"] == LAYERWISE].set_index("criterion")
    taylor, norm = (
        f"{rows.beyond[n]:+.1f} ± {rows.beyond_half[n]:.1f}" for n in ("taylor", "weight_norm")
    )
    assert f"far below random removal here ({taylor} and {norm})" in PAGE
    banzhaf = f"{rows.beyond['banzhaf']:+.1f} ± {rows.beyond_half['banzhaf']:.1f}"
    assert f"only Banzhaf is above it ({banzhaf})" in PAGE
    above = rows["beyond"] - rows["beyond_half"] > 0
    assert above[above].index.tolist() == ["banzhaf"]


def test_what_is_said_of_fine_tuning_that_harms():
    rows = of_convnet("gains").query("removed == 'first cut'").set_index(["repair", "criterion"])
    few, many = rows.loc[FEW], rows.loc[LONG]
    worse = few[few["high"] < 0]
    assert len(worse) == 7
    said = f"lower the accuracy of seven of nine criteria, by {-worse['mean'].max():.1f} to"
    for page in (PAGE, LOW_DATA):
        assert f"{said} {-worse['mean'].min():.1f} points" in page
    assert (many["low"] > 0).all()
    assert f"raise all nine, by {many['mean'].min():.1f} to {many['mean'].max():.1f}" in PAGE
    last = of_convnet("gains").query("removed == 'last cut' and repair == @LONG")
    assert (last["low"] > 0).all()


def test_what_is_said_of_the_claim():
    rows = tables.read("claim").set_index(["schedule", "repair", "criterion"])
    few = "0 steps on 100 pictures"
    stepwise, layerwise = rows.loc[STEPWISE], rows.loc[LAYERWISE]
    tuned, anew, stale = (stepwise.loc[each] for each in (FEW, few, "stale"))
    for table in (tuned, anew, stale):
        for name in ("random", "weight_norm", "taylor"):
            assert interval(table.loc[name]) in LOW_DATA
    for table in (anew, stale):
        assert (table.loc[["random", "weight_norm", "taylor"], "low"] > 0).all()
    assert tuned.loc["random", "low"] > 0
    assert (
        f"cannot be told apart with stale statistics ({interval(stale.loc['owen_gradient'])})"
        in LOW_DATA
    )
    assert stale.loc["owen_gradient", "low"] < 0
    signed, banzhaf = anew.loc["taylor_signed"], anew.loc["banzhaf"]
    assert f"signed Taylor ({interval(signed)}) and Banzhaf ({interval(banzhaf)})" in LOW_DATA
    assert max(signed["low"], banzhaf["low"]) < 0 < min(signed["high"], banzhaf["high"])
    words = (
        "are {} points above random removal and {} above weight norm; above Taylor they are by {}"
    )
    stale, anew, tuned = (layerwise.loc[each] for each in ("stale", few, FEW))
    three = [interval(stale.loc[name]) for name in ("random", "weight_norm", "taylor")]
    assert words.format(*three) in LOW_DATA
    owen = stale.loc["owen_gradient"]
    assert f"level with the Owen gradient ({interval(owen)})" in LOW_DATA
    assert owen["low"] < 0 < owen["high"]
    assert (stale.loc[["random", "weight_norm", "taylor"], "low"] > 0).all()
    assert f"not above random removal: {interval(anew.loc['random'])}" in LOW_DATA
    assert f"by {interval(anew.loc['taylor'])}, which is far below random removal" in LOW_DATA
    assert anew.loc["random", "low"] < 0
    two = [interval(tuned.loc[name]) for name in ("random", "taylor")]
    assert f"{two[0]} above random removal and {two[1]} above Taylor" in LOW_DATA
    assert (tuned.loc[["random", "taylor"], "low"] > 0).all()


def test_where_a_second_reading_differs(block):
    random = sum(block.accuracy(name, NONE) for name in ("random", "random, other draw")) / 2
    taylor = crossed_mean(block.accuracy("taylor", NONE) - random)
    assert f"Contrast 2 is {interval(vars(taylor))} by that" in PAGE
    for name in ("taylor", "shapley mean_plus_2_std 256"):
        both = []
        for at in (CUTS, 3):
            own, random = (
                block.accuracy(each, "stale", at, LAYERWISE) for each in (name, "random")
            )
            both.append(interval(vars(crossed_mean(own - random))))
        assert both[0] in PAGE
        assert f"{both[1]} at the end" in PAGE
    four = Block("convnet", only=(0, 1, 2, 3))
    redrawn = analyse.gap(four, "shapley mean 64, other draw", "shapley mean 64", NONE)
    assert f"by {interval(vars(crossed_mean(redrawn)))}, on four networks" in PAGE


def test_all_blocks_with_records_are_in_the_results():
    folders = {path.parent.name for path in Block("convnet").folder.glob("*/*.csv")}
    assert set(tables.read("summary")["block"]) == folders
    networks = tables.read("contrasts").groupby("block")["networks"].unique()
    assert {name: len(Block(name).networks) for name in folders} == networks.str[0].to_dict()


def test_what_is_said_of_the_resnets():
    rows = tables.read("contrasts").query("block == 'resnet20'").set_index("number")
    said = {1: "contrast 1, {} here", 2: "Taylor has {} beyond", 7: "and is {} above signed Taylor"}
    for number, words in said.items():
        assert words.format(interval(rows.loc[number])) in PAGE
    assert rows.loc[7, "low"] > 0  # in the README, too
    means = tables.read("summary").query("block == 'resnet20' and removed == 'all cuts'")
    stale = means[means["repair"] == "stale"]["accuracy"]
    assert f"every criterion ({stale.min():.0f} to {stale.max():.0f} %)" in PAGE
    assert stale.max() < 15
    tuned = tables.read("pairs").query("block == 'resnet20' and repair == @LONG")
    beside = tuned[tuned["criterion"] == "random"]
    assert ((beside["low"] < 0) & (beside["high"] > 0)).all()
    assert beside["p_equivalent"].min() > 0.05


def leads(block, name, repair=NONE, others=("random", "random, other draw"), at=CUTS):
    """Points beyond each draw of random removal on each network."""
    values = (block.accuracy(name, repair, at) - block.accuracy(n, repair, at) for n in others)
    return np.concatenate([each.mean(1) for each in values])


def span(values):
    return f"{min(values):.0f} to {max(values):.0f}"


def test_what_is_said_of_vgg11():
    vgg = Block("vgg11")
    assert f"at chance ({vgg.accuracy('random', 'stale').mean():.1f} %) from the first cut" in PAGE
    stale = span(leads(vgg, "owen_gradient", "stale", ["random"]))
    assert f"the Owen gradient is {stale} points above it, by its first three cuts" in PAGE
    by_cut = [leads(vgg, "owen_gradient", "stale", ["random"], at).mean() for at in range(1, 7)]
    assert min(by_cut[:3]) > 10 > 2 > max(by_cut[3:])
    weight_norm = span(leads(vgg, "weight_norm"))
    assert f"by either draw of it ({weight_norm} points), nearly all of it at the third" in PAGE
    by_cut = [leads(vgg, "weight_norm", NONE, ["random"], at).mean() for at in range(1, 7)]
    assert sum(by_cut[2:4]) > 0.8 * sum(by_cut)
    owen, shapley = (span(leads(vgg, name)) for name in ("owen_gradient", "shapley mean 16"))
    assert f"The Owen gradient is {owen} points above, the mean of Shapley values" in PAGE
    assert f"the mean of Shapley values {shapley} points." in PAGE
    assert f"is {weight_norm} points above it on [two VGG11 on digits]" in RESULTS
    tuned = tables.read("pairs").query("block == 'vgg11' and repair == @LONG")
    beside = tuned[tuned["criterion"] == "random"]
    assert ((beside["low"] < 0) & (beside["high"] > 0)).all()
    assert beside["p_equivalent"].min() > 0.05
    whole = 100 * vgg.rows.query("step == 0")["test_accuracy_after"].mean()
    left = vgg.accuracy("random", LONG).mean()
    ends = -beside["mean"].max(), -beside["mean"].min()
    assert f"leaves {left:.1f} %, more than the unpruned networks' {whole:.1f}: at this" in PAGE
    assert f"the criteria are {ends[0]:z.1f} to {ends[1]:.1f} points from it" in PAGE
    again = leads(vgg, "random, other draw", LONG, ["random"]).mean()
    assert f"a second draw of random removal {again:.1f}." in PAGE


def test_what_is_said_of_choosing_on_the_other_networks():
    regrets = tables.read("elsewhere")
    chosen, few = regrets.query("removed == 'all cuts'"), "0 steps on 100 pictures"
    assert set(chosen[chosen["repair"].isin([NONE, few])]["chosen"]) == {"owen_gradient"}
    most = chosen.groupby("repair")["regret"].max()
    assert f"costs at most {most[NONE]:.1f} points ({most[few]:.1f} with statistics" in PAGE
    assert f"at most {most[NONE]:.1f} points on the third ({most[few]:.1f} with" in RESULTS
    single = regrets.query("removed != 'all cuts' and repair == @NONE")
    worst = single.loc[single["regret"].idxmax()]
    assert worst[["pair", "chosen", "removed"]].tolist() == ["vgg11", "taylor_signed", "last cut"]
    assert f"and cost up to {worst['regret']:.1f} points (signed Taylor, last cut" in PAGE
    assert f"at most {most[LONG]:.1f} points on all pictures, {most[FEW]:.1f} on 100" in PAGE
    assert f"with stale statistics up to {most['stale']:.1f} (the ResNets are at chance" in PAGE
    best = leads(Block("vgg11"), "owen_gradient", NONE, ["shapley mean_plus_2_std 16"])
    assert f"gradient is {-best.min():.1f} below and {best.max():.1f} above the criterion" in PAGE
    means = tables.read("summary").query("removed == 'all cuts' and repair == @NONE")
    means = means[~means["criterion"].str.contains("draw")].set_index(["block", "criterion"])
    below = means.groupby("block")["accuracy"].max() - means["accuracy"]
    for name, words in (("shapley mean 16", "is {:.1f} and {:.1f} below the best"),
                        ("owen_gradient", "the Owen gradient {:.1f} and {:.1f}")):  # fmt: skip
        assert words.format(*(below[kind, name] for kind in ("resnet20", "vgg11"))) in PAGE


def test_what_is_said_of_cuts_and_costs(block):
    minutes = block.rows.groupby("network")["minutes"].first()
    assert f"A network takes {minutes.min():.0f} to {minutes.max():.0f} minutes" in PAGE
    cuts = block.rows.query("schedule == @STEPWISE and step > 0").groupby("step")["removed_flops"]
    left = [f"{100 * (1 - share):.0f}" for share in cuts.mean()]
    assert f"to {', '.join(left[:-1])} and {left[-1]} % of its FLOPs" in PAGE
    ends = block.rows[(block.rows["schedule"] == LAYERWISE) & (block.rows["step"] == 3)]
    assert f"with {100 * ends['removed_flops'].mean():.0f} % of the FLOPs removed" in PAGE


def test_damage_before_fine_tuning_does_not_tell_the_order_after_it():
    means = summary("removed == 'all cuts'").pivot_table("accuracy", "criterion", "repair").dropna()
    assert abs(spearman(means["0 steps on 100 pictures"], means[FEW])) < 0.2
